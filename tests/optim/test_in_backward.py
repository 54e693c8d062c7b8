"""Steps that layers take within the backward pass: the same weights, and never all gradients at once."""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

import padded_terms
from g2rpo_fast.learner import Learner
from g2rpo_fast.model import ModelConfig
from g2rpo_fast.model.half import keep_half
from g2rpo_fast.model.load import checkpoint_layers
from g2rpo_fast.objective.terms import Disco
from g2rpo_fast.optim import OptimConfig, apply_gradients, make_optimizer
from g2rpo_fast.optim.in_backward import InBackward, largest_layer
from g2rpo_fast.pieces import Scored, Term
from scored import CLOCK, rewards_of
from textbook_updates import model_of, sgd_learner
from updates import PLAIN, advantages, batches, learner, rollouts

PLAINLY = OptimConfig(max_grad_norm=math.inf, updates_per_batch=2, weight_decay=0.1)


def learner_of(
    optim: OptimConfig, *, budget: int = 8192, compute: ModelConfig, terms: tuple[Term, ...] = ()
) -> Learner:
    made = learner(PLAIN, optim=optim, budget=budget, compute=compute, terms=terms)
    if compute.gradient_checkpointing:
        checkpoint_layers(made.model)
    if compute.weights == "bfloat16":
        keep_half(made.model)
    return replace(made, optimizer=make_optimizer(made.model, optim))


COMPUTES = {
    "float32": ModelConfig(),
    "bfloat16": ModelConfig(precision="bfloat16"),
    "checkpointing": ModelConfig(precision="bfloat16", gradient_checkpointing=True),
    "half": ModelConfig(weights="bfloat16"),
    "half, checkpointing": ModelConfig(weights="bfloat16", gradient_checkpointing=True),
}


CASES = [(name, "adamw", budget) for name in COMPUTES for budget in (8192, 40)] + [
    ("float32", "muon", 40),
    ("float32", "adamw_8bit", 8192),
    ("half", "muon", 8192),
    ("half", "adamw_8bit", 40),
]


@pytest.mark.parametrize(("name", "kind", "budget"), CASES)
def test_weights_are_those_of_a_step_at_the_end(name: str, kind: Any, budget: int) -> None:
    """Bit for bit, in one micro-batch and in several, over minibatches and passes."""
    if kind == "adamw_8bit":
        pytest.importorskip("bitsandbytes")
    given, compute = batches(rollouts(), advantages(), PLAIN, minibatches=2), COMPUTES[name]
    optim = replace(PLAINLY, kind=kind)
    at_end = learner_of(optim, budget=budget, compute=compute)
    within = learner_of(replace(optim, in_backward=True), budget=budget, compute=compute)
    start = copy.deepcopy(at_end.model.state_dict())
    wanted, got = at_end.update(given, lr=1e-3), within.update(given, lr=1e-3)
    assert wanted["update/micro_batches"] > 2 or budget == 8192
    assert wanted.keys() == got.keys()
    for metric, value in wanted.items():
        near = pytest.approx(value, rel=1e-5) if metric == "optim/grad_norm" else value
        assert got[metric] == near, metric
    for key, weight in at_end.model.state_dict().items():
        assert torch.equal(within.model.state_dict()[key], weight), key
        assert not torch.equal(start[key], weight), key


@pytest.mark.parametrize("family", ["qwen3_moe", "lfm2", "gpt2"])
def test_other_layers_move_alike(family: str) -> None:
    """Experts with the loss that balances them, states that fork, embeddings of positions."""
    given = batches(rollouts(), advantages(), PLAIN)
    compute = ModelConfig(router_aux=0.1 if family == "qwen3_moe" else None)
    ends = []
    for in_backward in (False, True):
        optim = replace(PLAINLY, in_backward=in_backward)
        made = sgd_learner(model_of(family), 40, compute, shares=True)
        made = replace(made, optim=optim, optimizer=make_optimizer(made.model, optim))
        stats = made.update(given, lr=1e-3)
        assert ("update/router_aux" in stats) == (family == "qwen3_moe")
        ends.append(made.model.state_dict())
    for name, weight in ends[0].items():
        assert torch.equal(ends[1][name], weight), name


def test_gradients_of_one_layer_are_there_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen at every step: those of one layer, and of what lies outside of the layers."""
    made = learner_of(replace(PLAINLY, in_backward=True), compute=ModelConfig())
    parameters = list(made.model.parameters())
    held: list[int] = []

    def look(*_: object) -> None:
        held.append(sum(p.grad.numel() for p in parameters if p.grad is not None))

    made.optimizer.register_step_pre_hook(look)
    made.update(batches(rollouts(), advantages(), PLAIN), lr=1e-3)
    layers = [m for m in made.model.modules() if isinstance(m, GradientCheckpointingLayer)]
    inside = {p for layer in layers for p in layer.parameters()}
    outside = sum(p.numel() for p in parameters if p not in inside)
    assert largest_layer(made.model) == sum(p.numel() for p in layers[0].parameters())
    assert len(held) == 2 * (len(layers) + 1)
    assert held[len(layers)] == held[-1] == outside
    assert max(held) == max(outside, largest_layer(made.model))


def test_terms_that_tie_micro_batches_move_in_the_last_one() -> None:
    """Groups that are cut: the step begins with a look at the weights, and ends with their move."""
    made = padded_terms.rollouts()
    given = padded_terms.batches(made)
    rewards = rewards_of(np.array(padded_terms.REWARD_R)[:, None])
    scored = Scored(rollouts=tuple(made), rewards=rewards, clock=CLOCK)
    ends = {}
    for in_backward in (False, True):
        plain = padded_terms.learner((Disco(),), padded_terms.SPLIT)
        optim = replace(PLAINLY, in_backward=in_backward)
        ours = replace(plain, optim=optim, optimizer=make_optimizer(plain.model, optim))
        stats = ours.update(given, lr=1e-3, scored=scored)
        assert stats["update/micro_batches"] > 2
        ends[in_backward] = list(ours.model.parameters())
    for within, at_end in zip(ends[True], ends[False], strict=True):
        assert torch.equal(within, at_end)


def test_after_a_gradient_that_is_not_finite_nothing_more_moves() -> None:
    """The layers behind it have moved already; the update counts as skipped."""
    made = learner_of(replace(PLAINLY, in_backward=True, updates_per_batch=1), compute=ModelConfig())
    layers = [m for m in made.model.modules() if isinstance(m, GradientCheckpointingLayer)]
    assert len(layers) > 1
    before = copy.deepcopy(made.model)

    def spoil(module: nn.Module, inputs: Any, output: Any) -> None:
        hidden = output if isinstance(output, torch.Tensor) else output[0]
        hidden.register_hook(lambda gradient: gradient * math.nan)

    layers[-2].register_forward_hook(spoil)
    stats = made.update(batches(rollouts(), advantages(), PLAIN), lr=1e-3)
    assert stats["optim/skipped"] == 1
    assert math.isnan(stats["optim/grad_norm"])
    old = dict(before.named_parameters())
    last = f"layers.{len(layers) - 1}."
    for name, weight in made.model.named_parameters():
        assert torch.equal(weight, old[name]) == (last not in name), name
        assert weight.grad is None


class Early(GradientCheckpointingLayer):
    """A layer with a weight that was used before the layer's input was there."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, hidden_states: torch.Tensor, early: torch.Tensor) -> torch.Tensor:
        return self.first(hidden_states).tanh() + early


def test_a_weight_whose_gradient_comes_late_moves_at_the_end() -> None:
    torch.manual_seed(0)
    whole, x = Early(), torch.randn(3, 4, requires_grad=True)
    within = copy.deepcopy(whole)
    sgd = [torch.optim.SGD(layer.parameters(), lr=0.5) for layer in (whole, within)]
    begun = InBackward(within, sgd[1], 0.5)
    for layer, last_pass in ((whole, nullcontext()), (within, begun.last_pass())):
        with last_pass:
            early = layer.second(torch.ones(4))
            layer(x * 1, early).sum().backward()
    assert within.first.weight.grad is None
    assert within.second.weight.grad is not None
    norms = [
        apply_gradients(of, lr=0.5, max_grad_norm=math.inf, begun=by)
        for of, by in zip(sgd, (None, begun), strict=True)
    ]
    assert norms[1] == pytest.approx(norms[0], rel=1e-6)
    for ours, theirs in zip(within.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)


class Added(torch.autograd.Function):
    """Adds to a weight's gradient by itself, at each use, as rounded linear maps do."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.weight = weight
        return x * 1

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.weight.grad = torch.ones_like(ctx.weight) + (0 if ctx.weight.grad is None else ctx.weight.grad)
        return dy, None


class Direct(GradientCheckpointingLayer):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, hidden_states: torch.Tensor, early: torch.Tensor) -> torch.Tensor:
        inside: Any = Added.apply(hidden_states, self.weight)
        return inside.tanh() + early


def test_a_second_gradient_after_the_step_is_an_error() -> None:
    layer = Direct()
    begun = InBackward(layer, torch.optim.SGD(layer.parameters(), lr=1.0), 1.0)
    x = torch.randn(3, 4, requires_grad=True)
    wrong = pytest.raises(RuntimeError, match=r"optim\.in_backward: wanted layers .* set it to false")
    with wrong, begun.last_pass():
        early: Any = Added.apply(x, layer.weight)
        layer(x * 1, early).sum().backward()


def test_a_layer_that_runs_twice_moves_once_after_both() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Plain()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(self.layer(x)).sum()

    class Plain(GradientCheckpointingLayer):
        def __init__(self) -> None:
            super().__init__()
            self.map = nn.Linear(4, 4)

        def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
            return self.map(hidden_states).tanh()

    torch.manual_seed(0)
    whole = Twice()
    within = copy.deepcopy(whole)
    x = torch.randn(3, 4, requires_grad=True)
    whole(x * 1).backward()
    torch.optim.SGD(whole.parameters(), lr=0.5).step()
    begun = InBackward(within, torch.optim.SGD(within.parameters(), lr=0.5), 0.5)
    with begun.last_pass():
        within(x * 1).backward()
    for ours, theirs in zip(within.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.grad is None
    assert begun.norm > 0
