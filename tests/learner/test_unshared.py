"""Updates on unshared rows, in float64, against each row by itself in plain transformers; SGD steps."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from causal_types import CAUSAL_TYPES, tiny_model
from g2rpo_fast.model import ModelConfig
from g2rpo_fast.model.hook import ATTENTION
from g2rpo_fast.model.padded import PADDING, alike, padded_hidden
from g2rpo_fast.tree import UNSHARED, TreeConfig, plan_trees
from textbook_updates import check_update, model_of, moved, sgd_learner
from updates import PLAIN, advantages, batches, learner, rollouts

FAMILIES = ["bloom", "falcon", "gpt_oss", "llama4_text", "mamba"]
SLOW = ["jamba", "minimax"]


@pytest.mark.parametrize("family", [name for name in FAMILIES if name in CAUSAL_TYPES])
def test_update_on_unshared_rows_equals_each_row_by_itself(family: str) -> None:
    check_update(model_of(family), 8192, 40, shares=False)


@pytest.mark.deep
@pytest.mark.parametrize("family", [name for name in SLOW if name in CAUSAL_TYPES])
def test_update_on_unshared_rows_of_a_slow_family_equals_each_row_by_itself(family: str) -> None:
    check_update(model_of(family), 8192, 40, shares=False)


def test_checkpointing_changes_nothing() -> None:
    check_update(model_of("mamba"), 8192, shares=False, compute=ModelConfig(gradient_checkpointing=True))


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
    ours = sgd_learner(tiny_model("bloom"), 8192, ModelConfig(precision="bfloat16"), shares=False)
    (plan,) = plan_trees(batches(rollouts(), advantages(), PLAIN)[0].sequences, min_saved=ours.tree.min_saved)
    exact = padded_hidden(ours.model, plan).hidden_SD
    rounded = ours.policy.hidden(plan).hidden_SD
    error = float(((rounded.float() - exact).abs().max() / exact.abs().max()).detach())
    assert 1e-4 < error < 0.1
    rounded.float().sum().backward()
    assert {p.grad.dtype for p in ours.model.parameters() if p.grad is not None} == {torch.float32}


def test_plans_with_branches_are_refused() -> None:
    ours = sgd_learner(tiny_model("bloom"), 8192, shares=False)
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
