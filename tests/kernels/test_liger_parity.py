"""FusedLinearGRPOLoss against the installed Liger-Kernel.

Its loss function runs on float64 log-probabilities, where agreement is to rounding; the whole of it runs in
float32, where our error is held to twice its error plus one rounding.

Dimension key: B sequences, L positions of each, D width, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from g2rpo_kernels import FusedLinearGRPOLoss
from torch import Tensor

from drawn import normal

liger = pytest.importorskip("liger_kernel.chunked_loss.grpo_loss", reason="liger-kernel is not installed")

B, L, D, V = 6, 5, 7, 13
TEMPERATURE, NUM_ITEMS = 0.7, 31.0
CLIPPED = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")
LEVELS = [("token", name) for name in (*CLIPPED, "cispo", "sapo", "vespo")]
LEVELS += [("sequence", name) for name in CLIPPED]
VARIANTS = [
    ({"beta": 0.0}, None),
    ({"beta": 0.0}, (B, L)),
    ({"beta": 0.1}, (B, 1)),
    ({"beta": 0.1, "delta": 1.1}, (B,)),
    ({"beta": 0.1, "delta": 1.6, "use_bias_correction_kl": True}, (B, L)),
]
"""Settings, and the shape of vllm_is_ratio."""


@dataclass(frozen=True)
class Batch:
    hidden: Tensor
    head: Tensor
    bias: Tensor
    ids: Tensor
    mask: Tensor
    advantages: Tensor
    old: Tensor
    ref: Tensor


def make_batch(seed: int = 0) -> Batch:
    """Values that float32 holds exactly, in float64."""
    shapes = [(B, L, D), (V, D), (V,)]
    hidden, head, bias = (
        normal(*shape, seed=100 * seed + s).float().double() for s, shape in enumerate(shapes)
    )
    ids = torch.randint(V, (B, L), generator=torch.Generator().manual_seed(3))
    logp = torch.log_softmax((hidden @ head.T + bias) / TEMPERATURE, -1).gather(-1, ids[..., None])[..., 0]
    return Batch(
        hidden=hidden,
        head=head,
        bias=bias,
        ids=ids,
        mask=(torch.arange(L) < torch.tensor([5, 1, 3, 0, 2, 4])[:, None]).long(),
        advantages=torch.tensor([1.25, -0.75, 0.0, -2.0, 0.5, -0.25], dtype=torch.float64),
        old=(logp + 0.4 * normal(B, L, seed=4)).float().double(),
        ref=(logp + 0.4 * normal(B, L, seed=5)).float().double(),
    )


def settings_of(level: str, loss_type: str, variant: dict) -> dict:
    return {
        "loss_type": loss_type,
        "importance_sampling_level": level,
        "epsilon_high": 0.9 if loss_type == "cispo" else 0.28,
        "max_completion_length": 9,
        **variant,
    }


def ratio_of(shape: tuple[int, ...] | None) -> Tensor | None:
    return None if shape is None else (0.5 * normal(*shape, seed=6)).exp().clamp(max=1.5).float().double()


Run = Callable[[Batch, Tensor, Tensor, Tensor], tuple[Tensor, tuple[Tensor, ...]]]


def liger_in_float64(settings: dict, on_policy: bool, ratio: Tensor | None) -> Run:
    """Liger's loss of log-probabilities, under plain autograd."""
    if ratio is not None and ratio.dim() == 1:
        ratio = ratio[:, None]  # as its caller does

    def run(b: Batch, hidden: Tensor, head: Tensor, bias: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        logp_BLV = torch.log_softmax((hidden @ head.T + bias) / TEMPERATURE, -1)
        loss, metrics = liger.LigerFusedLinearGRPOFunction.ppo_loss_fn(
            logp_BLV.gather(-1, b.ids[..., None])[..., 0],
            b.mask.double(),  # an integer mask would make the clipped fraction float32
            b.advantages,
            b.mask.double(),
            ref_per_token_logps=b.ref,
            old_per_token_logps=None if on_policy else b.old,
            vllm_is_ratio=ratio,
            num_items_in_batch=None if ratio is None else NUM_ITEMS,
            **settings,
        )
        return loss, tuple(metrics)

    return run


def module(made: torch.nn.Module, on_policy: bool, ratio: Tensor | None, reference: str = "logps") -> Run:
    """Either side's module; the reference as log-probabilities, as hidden states, or none."""

    def run(b: Batch, hidden: Tensor, head: Tensor, bias: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        dtype = hidden.dtype
        refs = {
            "logps": {"ref_per_token_logps": b.ref.to(dtype)},
            "hidden": {
                "ref_input": b.hidden.to(dtype).flip(0),
                "ref_weight": b.head.to(dtype) / 2,
                "ref_bias": b.bias.to(dtype),
            },
            "none": {},
        }
        return made(
            hidden,
            head,
            b.ids,
            b.mask,
            b.advantages.to(dtype),
            bias=bias,
            old_per_token_logps=None if on_policy else b.old.to(dtype),
            vllm_is_ratio=None if ratio is None else ratio.to(dtype),
            num_items_in_batch=None if ratio is None else NUM_ITEMS,
            **refs[reference],
        )

    return run


def everything(b: Batch, run: Run, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Loss, metrics, and gradients of three times the loss."""
    leaves = [x.to(dtype).requires_grad_() for x in (b.hidden, b.head, b.bias)]
    loss, metrics = run(b, *leaves)
    gradients = torch.autograd.grad(3 * loss, leaves)
    return loss.detach(), *(m.detach().to(dtype) for m in metrics), *gradients


@pytest.mark.parametrize(("level", "loss_type"), LEVELS)
@pytest.mark.parametrize("on_policy", [True, False])
def test_values_gradients_and_metrics_are_ligers(level: str, loss_type: str, on_policy: bool) -> None:
    b = make_batch()
    for variant, shape in VARIANTS:
        settings, ratio = settings_of(level, loss_type, variant), ratio_of(shape)
        if (level, loss_type) == ("sequence", "luspo") and "use_bias_correction_kl" in variant:
            with pytest.raises(ValueError, match="luspo_over_padding: wanted False"):
                FusedLinearGRPOLoss(**settings)
            continue
        want = everything(b, liger_in_float64(settings, on_policy, ratio), torch.float64)
        assert want[-2].abs().max() > 1e-3
        for impl in ("reference", "cpu"):
            ours = FusedLinearGRPOLoss(**settings, temperature=TEMPERATURE, impl=impl, chunk_bytes=3 * V * 8)
            got = everything(b, module(ours, on_policy, ratio), torch.float64)
            for one, true in zip(got, want, strict=True):
                torch.testing.assert_close(one, true, rtol=1e-10, atol=1e-12)


def worst_error(values: tuple[Tensor, ...], truth: tuple[Tensor, ...]) -> float:
    """Largest error of any output, relative to that output's largest entry."""
    pairs = [(value.double(), true) for value, true in zip(values, truth, strict=True) if true.any()]
    assert len(pairs) >= 4
    return max(float((value - true).abs().max() / true.abs().max()) for value, true in pairs)


@pytest.mark.parametrize(("level", "loss_type"), LEVELS)
@pytest.mark.parametrize("reference", ["logps", "hidden", "none"])
def test_float32_error_is_within_twice_ligers(level: str, loss_type: str, reference: str) -> None:
    """The whole modules, with the reference in each of its forms: the mean over twelve batches."""
    settings = settings_of(level, loss_type, {"beta": 0.1, "use_ref_model": reference != "none"})
    settings["temperature"] = TEMPERATURE
    ours, theirs = FusedLinearGRPOLoss(**settings), liger.LigerFusedLinearGRPOLoss(**settings, compiled=False)
    errors = []
    for seed in range(12):
        b = make_batch(seed)
        truth = everything(b, module(ours, False, None, reference), torch.float64)
        runs = (everything(b, module(side, False, None, reference), torch.float32) for side in (ours, theirs))
        errors.append([worst_error(values, truth) for values in runs])
    our_error, their_error = torch.tensor(errors).mean(0).tolist()
    assert 0 < our_error <= 2 * their_error + torch.finfo(torch.float32).eps


def test_signatures_begin_as_ligers() -> None:
    for name in ("__init__", "forward"):
        ours, theirs = (
            inspect.signature(getattr(made, name)).parameters
            for made in (FusedLinearGRPOLoss, liger.LigerFusedLinearGRPOLoss)
        )
        assert list(ours)[: len(theirs)] == list(theirs)
        assert [ours[key].default for key in theirs] == [p.default for p in theirs.values()]
        assert all(p.kind is p.KEYWORD_ONLY for p in list(ours.values())[len(theirs) :])
