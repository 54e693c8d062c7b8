"""Updates on unshared rows, in float64, against each row by itself in plain transformers; SGD steps.

SGD with rate 1 and no clipping turns weights into gradients: what the update moved is what is compared. Many
models compute norms and states in float32 whatever their dtype: rounding of these is what is allowed.
"""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from causal_types import CAUSAL_TYPES, tiny_model
from g2rpo_fast.learner import Learner
from g2rpo_fast.model import ModelConfig
from g2rpo_fast.model.hook import ATTENTION, follows_trees
from g2rpo_fast.model.load import checkpoint_layers, select_attention
from g2rpo_fast.model.padded import PADDING, alike, padded_hidden
from g2rpo_fast.optim import OptimConfig
from g2rpo_fast.tree import UNSHARED, TreeConfig, plan_trees
from updates import COMPUTE, PLAIN, TEMPERATURE, advantages, batches, learner, rollouts, textbook_loss

FAMILIES = [
    "bamba",
    "bloom",
    "falcon",
    "falcon_h1",
    "gpt_oss",
    "granitemoehybrid",
    "lfm2",
    "llama4_text",
    "mamba",
]
SLOW = ["mamba2", "nemotron_h", "qwen3_5_text", "qwen3_next"]
"""Their reference code steps through tokens, forward and backward."""
SCALED = {"falcon_h1": {"lm_head_multiplier": 0.25}, "granitemoehybrid": {"logits_scaling": 4.0}}
"""Logits, as in the models of these families that are published."""


def model_of(family: str) -> Any:
    model = tiny_model(family, **SCALED.get(family, {})).double()
    model.set_experts_implementation("eager")  # the others have no float64
    return model


def unshared_learner(model: Any, budget: int, compute: ModelConfig = COMPUTE) -> Learner:
    assert select_attention(model) is not None
    if compute.gradient_checkpointing:
        checkpoint_layers(model)
    return Learner(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
        reference=None,
        objective=PLAIN.config,
        optim=OptimConfig(max_grad_norm=1e9),
        tree=TreeConfig(token_budget=budget).settled(follows_trees=follows_trees(model)),
        compute=compute,
        temperature=TEMPERATURE,
        terms=PLAIN.terms,
    )


def textbook_gradients(model: Any) -> dict[str, torch.Tensor]:
    """Of the mean over rows, a forward and a backward pass for each."""
    made = rollouts()
    for rollout, advantage in zip(made, advantages(), strict=True):
        (textbook_loss(model, [rollout], [np.float32(advantage)], None, None, PLAIN) / len(made)).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def moved(model: Any, start: Any) -> dict[str, torch.Tensor]:
    return {
        name: (s - p).detach()
        for (name, p), s in zip(model.named_parameters(), start.parameters(), strict=True)
    }


def check_update(family: str, *budgets: int, compute: ModelConfig = COMPUTE) -> None:
    start = model_of(family)
    wanted = textbook_gradients(copy.deepcopy(start))
    largest = max(float(grad.abs().max()) for grad in wanted.values())
    assert largest > 1e-3
    for budget in budgets:
        ours = unshared_learner(copy.deepcopy(start), budget, compute)
        assert ours.fused is not None
        stats = ours.update(batches(rollouts(), advantages(), PLAIN), lr=1.0)
        assert stats["update/token_ratio"] < 1.06  # a row is the beginning of another
        assert (stats["update/micro_batches"] > 1) == (budget < 100)
        got = moved(ours.model, start)
        for name, grad in wanted.items():
            assert float((got[name] - grad).abs().max()) < 1e-6 * largest, (name, budget)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name in CAUSAL_TYPES])
def test_update_on_unshared_rows_equals_each_row_by_itself(family: str) -> None:
    check_update(family, 8192, 40)


@pytest.mark.deep
@pytest.mark.parametrize("family", [name for name in SLOW if name in CAUSAL_TYPES])
def test_update_on_unshared_rows_of_a_slow_family_equals_each_row_by_itself(family: str) -> None:
    check_update(family, 8192, 40)


@pytest.mark.skipif("lfm2" not in CAUSAL_TYPES, reason="this transformers has no lfm2")
def test_checkpointing_changes_nothing() -> None:
    check_update("lfm2", 8192, compute=ModelConfig(gradient_checkpointing=True))


def test_off_on_a_model_that_follows_trees_is_the_same_update() -> None:
    """The packed stream and its attention stay; only plans share nothing."""
    given = batches(rollouts(), advantages(), PLAIN)
    shared, start = learner(), learner()
    tree = TreeConfig(token_budget=8192, sharing="off").settled(follows_trees=True)
    apart = replace(learner(), tree=tree)
    assert apart.model.config._attn_implementation == ATTENTION
    first, second = shared.update(given, lr=1.0), apart.update(given, lr=1.0)
    assert first["update/token_ratio"] > 1.2
    assert second["update/token_ratio"] < 1.06
    assert first["loss"] == pytest.approx(second["loss"], rel=1e-4, abs=1e-6)
    wanted, got = moved(shared.model, start.model), moved(apart.model, start.model)
    for name, grad in wanted.items():
        assert float((got[name] - grad).abs().max()) < 2e-4 * float(grad.abs().max()), name


def test_bfloat16_compute_keeps_float32_weights() -> None:
    ours = unshared_learner(tiny_model("bloom"), 8192, ModelConfig(precision="bfloat16"))
    (plan,) = plan_trees(batches(rollouts(), advantages(), PLAIN)[0].sequences, min_saved=ours.tree.min_saved)
    exact = padded_hidden(ours.model, plan)
    rounded = ours.policy.hidden(plan).hidden_SD
    error = float(((rounded.float() - exact).abs().max() / exact.abs().max()).detach())
    assert 1e-4 < error < 0.1
    rounded.float().sum().backward()
    assert {p.grad.dtype for p in ours.model.parameters() if p.grad is not None} == {torch.float32}


def test_plans_with_branches_are_refused() -> None:
    ours = unshared_learner(tiny_model("bloom"), 8192)
    (plan,) = plan_trees(batches(rollouts(), advantages(), PLAIN)[0].sequences)
    with pytest.raises(ValueError, match="bloom: wanted a plan of unshared rows, got one with branches"):
        ours.policy.hidden(plan)


def test_rows_of_alike_length_go_together() -> None:
    length_R = np.array([3, 100, 90, 4, 80, 95, 5])
    groups = alike(length_R)
    assert sorted(np.concatenate(groups).tolist()) == list(range(7))
    assert len(groups) == 2
    for rows in groups:
        assert length_R[rows].max() * len(rows) <= PADDING * length_R[rows].sum()


@pytest.mark.parametrize("impl", ["cpp", "python"])
def test_unshared_plans_hold_every_row_once(impl: Any) -> None:
    sequences = batches(rollouts(), advantages(), PLAIN)[0].sequences
    for budget in (None, 40):
        plans = plan_trees(sequences, token_budget=budget, min_saved=UNSHARED, impl=impl)
        assert all((plan.node_parent_Q == -1).all() for plan in plans)
        assert sorted(np.concatenate([plan.row_B for plan in plans]).tolist()) == list(range(12))
        assert sum(len(plan.token_S) for plan in plans) > 0.94 * sum(plan.unshared_tokens for plan in plans)
