"""The backbone's linear maps with weights rounded once, against autocast, which rounds them at every use."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen3Config

from g2rpo_fast.model.forward import tree_hidden
from g2rpo_fast.model.load import checkpoint_layers
from g2rpo_fast.model.products import rounded_weights
from g2rpo_fast.tree import plan_trees
from op_counts import Ops
from tree_models import rows
from wide_models import wide

HALF, FULL = torch.bfloat16, torch.float32
(PLAN,) = plan_trees(rows(True)[0], whole=True, impl="python")
PASSES = 3


def forward(model: Any) -> Tensor:
    with torch.autocast("cpu", HALF):
        return tree_hidden(model, PLAN).hidden_SD


def backward(model: Any, hidden_SD: Tensor) -> None:
    weight_SD = torch.linspace(-40, 40, hidden_SD.numel()).sin().view(hidden_SD.shape)
    (hidden_SD * weight_SD).sum().backward()


def gradients(model: Any, *, rounded: bool, ops: Ops | None = None) -> dict[str, Tensor]:
    """Summed over a few forward and backward passes."""
    model.zero_grad()
    with rounded_weights(model, HALF if rounded else FULL), ops or nullcontext():
        for _ in range(PASSES):
            backward(model, forward(model))
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert list(got) == list(wanted)
    for name in wanted:
        assert wanted[name].any()
        assert torch.equal(got[name], wanted[name]), name


def plain(model: Any) -> None:
    """As it comes."""


def freeze(model: Any) -> None:
    """What the first layer reads needs no gradient then."""
    layer = model.model.layers[0]
    for module in (
        model.model.embed_tokens,
        layer.input_layernorm,
        layer.self_attn.k_proj,
        layer.mlp.up_proj,
    ):
        module.requires_grad_(False)


@pytest.mark.parametrize("change", [plain, freeze, checkpoint_layers])
def test_gradients_are_autocasts_to_the_bit(change: Callable[[Any], None]) -> None:
    model = wide(Qwen3Config)
    change(model)
    wanted = gradients(model, rounded=False)
    assert (len(wanted) == 4 * 11 + 2) == (change in (plain, checkpoint_layers))
    assert_same(gradients(model, rounded=True), wanted)
    assert all(x.dtype == FULL for x in wanted.values())
    assert not any("forward" in vars(m) for m in model.modules() if isinstance(m, nn.Linear))


def test_a_weight_of_several_uses_gets_the_gradients_of_all() -> None:
    """In two maps, and in a map and the embedding: up to float32 rounding the sum of what copies of it get.
    (Autocast's are summed in bfloat16 first, where maps share one.)"""
    model = wide(Qwen3Config)
    first, second, *_ = model.model.layers
    with torch.no_grad():
        second.mlp.up_proj.weight.copy_(first.mlp.up_proj.weight)
        model.model.embed_tokens.weight.copy_(first.self_attn.k_proj.weight)
    apart = gradients(model, rounded=True)
    second.mlp.up_proj.weight = first.mlp.up_proj.weight
    model.model.embed_tokens.weight = first.self_attn.k_proj.weight
    got = gradients(model, rounded=True)
    for name, other in (
        ("model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"),
        ("model.embed_tokens.weight", "model.layers.0.self_attn.k_proj.weight"),
    ):
        assert name in got
        assert other not in got
        wanted = apart[name] + apart[other]
        error = float((got[name] - wanted).norm())
        assert error <= 2 * PASSES * torch.finfo(FULL).eps * float(wanted.norm()), name
        assert float(apart[other].norm()) > 0.01 * float(wanted.norm())


def test_gradients_of_biases_are_not_rounded() -> None:
    model = wide(Qwen2Config)
    wanted, got = gradients(model, rounded=False), gradients(model, rounded=True)
    biases = [name for name in wanted if name.endswith("proj.bias")]
    assert len(biases) == 12
    assert_same(*({k: v for k, v in of.items() if k not in biases} for of in (got, wanted)))
    for name in biases:
        error = float((got[name] - wanted[name]).norm())
        assert 0 < error < PASSES * torch.finfo(HALF).eps * float(wanted[name].norm())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_weights_are_rounded_once_and_inputs_once_for_all_maps(checkpointing: bool) -> None:
    model, size = wide(Qwen3Config), len(PLAN.end_S)
    if checkpointing:
        checkpoint_layers(model)
    ops, before = Ops(), Ops()
    gradients(model, rounded=True, ops=ops)
    gradients(model, rounded=False, ops=before)
    gate_up = tuple(model.model.layers[0].mlp.gate_proj.weight.shape)
    assert before.num_casts(gate_up, FULL, HALF) == (1 + checkpointing) * PASSES * 4 * 2
    assert before.num_casts(gate_up, HALF, FULL) == PASSES * 4 * 2
    assert ops.num_casts(gate_up, FULL, HALF) == 0  # they were before the first pass
    assert ops.num_casts(gate_up, HALF, FULL) == 4 * 2  # the others are added as they are
    inputs = (1, size, model.config.hidden_size)
    fewer = before.num_casts(inputs, FULL, HALF) - ops.num_casts(inputs, FULL, HALF)
    assert fewer == (1 + checkpointing) * PASSES * 4 * 3  # of five maps with two inputs
    assert ops.names.count("mm") == before.names.count("mm") > 0


def test_a_pass_without_gradient_comes_between() -> None:
    model, after = wide(Qwen3Config), wide(Qwen3Config)
    with rounded_weights(model, HALF):
        with torch.no_grad():
            look_SD = forward(model)
        hidden_SD = forward(model)
        backward(model, hidden_SD)
    assert torch.equal(look_SD, hidden_SD)
    backward(after, forward(after))
    for a, b in zip(model.model.parameters(), after.model.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert torch.equal(a.grad, b.grad)


def _used_wrongly(model: Any, exact_SD: Tensor) -> None:
    with rounded_weights(model, HALF):
        assert torch.equal(tree_hidden(model, PLAN).hidden_SD, exact_SD)
        assert not torch.equal(forward(model), exact_SD)
        model(torch.tensor([[1, 2]]))


def test_maps_are_their_own_outside_autocast_and_after_an_error() -> None:
    model = wide(Qwen3Config)
    exact_SD = tree_hidden(model, PLAN).hidden_SD
    with pytest.raises(RuntimeError, match="attend"):
        _used_wrongly(model, exact_SD)
    maps = [m for m in model.modules() if isinstance(m, nn.Linear)]
    assert len(maps) == 29
    assert not any("forward" in vars(m) for m in maps)
