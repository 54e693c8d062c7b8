"""Optimisers beside AdamW in float32: 8 bits, Muon, bfloat16 weights, and what is refused."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from g2rpo_fast.config import config_from_dict
from g2rpo_fast.model.half import keep_half
from g2rpo_fast.optim import OptimConfig, apply_gradients, check_optimizer, make_optimizer
from g2rpo_fast.optim.make import LEAST_8BIT, inner_matrices, moment_bytes
from g2rpo_fast.optim.rounded import rounded_at_random
from updates import base_model

KINDS = ("adamw", "adamw_8bit", "muon")


def moved(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, *, seed: int = 0) -> None:
    """By gradients of its own numbers."""
    draw = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=draw)
        assert math.isfinite(apply_gradients(optimizer, lr=1e-2, max_grad_norm=math.inf))


def large_model(half: bool = False) -> Any:
    """With matrices of more than `LEAST_8BIT` numbers."""
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Embedding(16, 80), nn.Linear(80, 96), nn.LayerNorm(96), nn.Linear(96, 80))
    if half:
        keep_half(model)
    return model


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_state_goes_on_bit_for_bit(kind: Any, half: bool) -> None:
    if kind == "adamw_8bit":
        pytest.importorskip("bitsandbytes")
    config = OptimConfig(kind=kind, weight_decay=0.1)
    whole, broken = large_model(half), large_model(half)
    moved(whole, make_optimizer(whole, config), 3)
    first = make_optimizer(broken, config)
    moved(broken, first, 3)
    state = copy.deepcopy(first.state_dict())
    went_on = make_optimizer(broken, config)
    went_on.load_state_dict(state)
    moved(broken, went_on, 2, seed=1)
    optimizer = make_optimizer(whole, config)  # the same again, without a break
    again = large_model(half)
    optimizer = make_optimizer(again, config)
    moved(again, optimizer, 3)
    moved(again, optimizer, 2, seed=1)
    for ours, theirs in zip(broken.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(broken.parameters(), whole.parameters(), strict=True):
        assert not torch.equal(ours, theirs)  # two steps make a difference, to each


def test_moments_in_8_bits_move_the_weights_as_bitsandbytes_does() -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    ours, theirs, exact = large_model(), large_model(), large_model()
    optimizer = make_optimizer(ours, OptimConfig(kind="adamw_8bit"))
    moved(ours, optimizer, 4)
    moved(
        theirs,
        bitsandbytes.optim.AdamW8bit(theirs.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0),
        4,
    )
    moved(exact, make_optimizer(exact, OptimConfig()), 4)
    for mine, wanted, near in zip(ours.parameters(), theirs.parameters(), exact.parameters(), strict=True):
        assert torch.equal(mine, wanted)
        assert float((mine - near).detach().abs().max()) < 0.02  # of steps of up to 0.01, four of them
    assert not torch.equal(ours[1].weight, exact[1].weight)
    dtypes = {p.numel() >= LEAST_8BIT: optimizer.state[p]["state1"].dtype for p in ours.parameters()}
    assert dtypes == {True: torch.uint8, False: torch.float32}


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_bytes_of_moments_are_those_that_are_there(kind: Any, half: bool) -> None:
    if kind == "adamw_8bit":
        pytest.importorskip("bitsandbytes")
    model, config = large_model(half), OptimConfig(kind=kind)
    optimizer = make_optimizer(model, config)
    moved(model, optimizer, 1)
    there = [optimizer]
    there = [inner for o in there for inner in getattr(o, "parts", [o])]
    there = [getattr(o, "_inner", o) for o in there]
    found = {
        tensor.data_ptr(): tensor.nbytes
        for o in there
        for state in o.state.values()
        for name, tensor in state.items()
        if isinstance(tensor, torch.Tensor) and tensor.numel() > 1 and not name.startswith("qmap")
    }
    assert sum(found.values()) == moment_bytes(model, config)


def test_paged_moments_take_no_room_on_a_gpu_that_is_short() -> None:
    model = large_model()
    for kind, like in (("paged_adamw", "adamw"), ("paged_adamw_8bit", "adamw_8bit")):
        paged, plain = OptimConfig(kind=kind), OptimConfig(kind=like)  # type: ignore[arg-type]
        assert moment_bytes(model, paged) == moment_bytes(model, plain) > 0
        assert moment_bytes(model, paged, resident=True) == 0
        assert moment_bytes(model, plain, resident=True) == moment_bytes(model, plain)


def test_muon_takes_the_matrices_inside_and_adamw_the_rest() -> None:
    model, config = base_model(), OptimConfig(kind="muon", weight_decay=0.2)
    inner = {id(p) for p in inner_matrices(model)}
    names = [name for name, p in model.named_parameters() if id(p) not in inner]
    assert all("embed" in name or "norm" in name or "lm_head" in name for name in names)
    assert len(inner) == 7 * model.config.num_hidden_layers
    before = copy.deepcopy(model)
    moved(model, make_optimizer(model, config), 1)
    adamw = copy.deepcopy(before)
    moved(adamw, make_optimizer(adamw, OptimConfig(weight_decay=0.2)), 1)
    for (name, new), old, other in zip(
        model.named_parameters(), before.parameters(), adamw.parameters(), strict=True
    ):
        if id(new) not in inner:
            assert torch.equal(new, other), name
            continue
        step = (new - old * (1 - 1e-2 * 0.2)) / 1e-2  # 0.2 sqrt(larger side) times an orthogonal factor
        sizes = torch.linalg.svdvals(step.detach()) / (0.2 * max(step.shape) ** 0.5)
        assert float(sizes.quantile(0.1)) > 0.5, name  # the smallest of a square matrix are nearly 0
        assert float(sizes.max()) < 1.3, name  # of five Newton-Schulz iterations in bfloat16
        assert 0.1 < float(step.detach().square().mean().sqrt()) < 0.3, name  # AdamW's is about 0.2


def test_rounding_at_random_is_right_in_the_mean_and_to_a_neighbour() -> None:
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(64, generator=draw) * torch.logspace(-30, 30, 64)
    exact = x.bfloat16().float()
    assert torch.equal(rounded_at_random(exact.clone(), draw).float(), exact)
    many = torch.stack([rounded_at_random(x.clone(), draw).double() for _ in range(4000)])
    low = x.view(torch.int32).bitwise_and(-1 << 16).view(torch.float32).double()
    gap = x.abs().log2().floor().exp2().double() * 2**-7 * x.sign()
    assert bool(((many == low) | (many == low + gap)).all())
    share = (x.double() - low) / gap
    off = ((many - low) / gap).mean(0) - share
    assert float((off / (share * (1 - share) / 4000).sqrt().clamp_min(1e-9)).abs().max()) < 4.5


def test_steps_below_half_a_gap_count_in_bfloat16() -> None:
    """200 steps of 2^-12 on weights of 1, whose neighbours are 2^-7 and 2^-8 away."""
    layer: Any = nn.Linear(64, 64, bias=False)
    layer.weight.data.fill_(1.0)
    keep_half(layer)
    optimizer = make_optimizer(layer, OptimConfig())
    for _ in range(200):
        layer.weight.grad = torch.ones(64, 64)
        apply_gradients(optimizer, lr=2**-12, max_grad_norm=math.inf)
    moved_by = 1 - layer.weight.detach().double().mean()
    assert float(moved_by) == pytest.approx(200 * 2**-12, rel=0.02)
    plain = nn.Parameter(torch.ones(64, 64, dtype=torch.bfloat16))
    plain.data -= 2**-12
    assert bool((plain == 1).all())  # what rounding to the nearest makes of such a step


def test_bfloat16_weights_take_the_float32_step_rounded() -> None:
    """Before its rounding a step is the one that float32 weights of the same values take."""
    half, exact = large_model(half=True), large_model()
    for p, q in zip(half.parameters(), exact.parameters(), strict=True):
        q.data = p.data.float()
    moved(half, make_optimizer(half, OptimConfig(weight_decay=0.1)), 1)
    moved(exact, make_optimizer(exact, OptimConfig(weight_decay=0.1)), 1)
    kinds = set()
    for p, q in zip(half.parameters(), exact.parameters(), strict=True):
        kinds.add(p.dtype)
        gap = q.detach().abs().clamp_min(1e-30).log2().floor().exp2() * 2**-7
        assert bool(((p.float() - q).abs() < gap).all()) if p.dtype == torch.bfloat16 else torch.equal(p, q)
    assert kinds == {torch.bfloat16, torch.float32}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"optim": {"in_backward": True}},
            r"optim\.max_grad_norm: wanted inf with optim\.in_backward .* got 1",
        ),
        ({"optim": {"kind": "muon"}, "adapter": {"kind": "lora"}}, r"optim\.kind: .* got muon"),
        (
            {"model": {"weights": "bfloat16"}, "adapter": {"kind": "lora"}},
            r"model\.weights: wanted float32 with adapter\.kind = lora",
        ),
        (
            {"model": {"weights": "bfloat16", "precision": "float32"}},
            r"model\.precision: wanted auto or bfloat16 with model\.weights = bfloat16, got float32",
        ),
        (
            {"model": {"checkpointed_layers": 2}},
            r"model\.gradient_checkpointing: wanted true with model\.checkpointed_layers, got false",
        ),
        (
            {"model": {"offload_activations": True}},
            r"model\.gradient_checkpointing: wanted true with model\.offload_activations, got false",
        ),
        ({"optim": {"kind": "sgd"}}, r"optim\.kind: wanted .*adamw_8bit.*, got 'sgd'"),
    ],
)
def test_what_does_not_go_together_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_from_dict(values)


@pytest.mark.parametrize("kind", ["paged_adamw", "paged_adamw_8bit"])
def test_nothing_pages_on_a_cpu(kind: Any) -> None:
    with pytest.raises(ValueError, match=rf"optim\.kind: wanted adamw, .* on a CPU, .* got {kind}"):
        check_optimizer(OptimConfig(kind=kind), "cpu")


def test_a_missing_bitsandbytes_is_told_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("g2rpo_fast.extras.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"optim\.kind: wanted adamw_8bit, .*g2rpo-fast\[optim\]"):
        check_optimizer(OptimConfig(kind="adamw_8bit"), "cpu")
    check_optimizer(OptimConfig(kind="muon"), "cpu")
