"""Updates of models with recurrent layers on trees, guided rows among them, against each row by itself.

What is allowed is the rounding of advantages, which are float32.
"""

from dataclasses import replace
from typing import Any

import pytest

from g2rpo_fast.model import ModelConfig
from g2rpo_fast.tree import TreeConfig
from recurrent_models import FAMILIES
from textbook_updates import check_update, model_of, moved, sgd_learner
from true_double import TrueDouble
from updates import PLAIN, advantages, batches, rollouts

BOUND = 1e-7
SCALED: dict[str, dict[str, Any]] = {
    "falcon_h1": {"lm_head_multiplier": 0.25},
    "granitemoehybrid": {"logits_scaling": 4.0},
}
"""Logits, as in the models of these families that are published."""


@pytest.mark.parametrize("family", FAMILIES)
def test_update_on_trees_equals_each_row_by_itself(family: str) -> None:
    start = model_of(family, **FAMILIES[family] | SCALED.get(family, {}))
    with TrueDouble():
        check_update(start, 8192, 40, shares=True, bound=BOUND)


@pytest.mark.parametrize("family", [name for name in ("lfm2", "qwen3_next", "bamba") if name in FAMILIES])
def test_checkpointing_changes_nothing(family: str) -> None:
    start = model_of(family, **FAMILIES[family])
    with TrueDouble():
        compute = ModelConfig(gradient_checkpointing=True)
        check_update(start, 8192, shares=True, compute=compute, bound=BOUND)


@pytest.mark.parametrize(
    "family", [name for name in ("lfm2", "qwen3_5_text", "falcon_h1") if name in FAMILIES]
)
def test_off_is_the_same_update(family: str) -> None:
    given = batches(rollouts(), advantages(), PLAIN)
    start = model_of(family, **FAMILIES[family])
    first = sgd_learner(model_of(family, **FAMILIES[family]), 8192, shares=True)
    off = TreeConfig(token_budget=8192, sharing="off").settled(follows_trees=True)
    second = replace(sgd_learner(model_of(family, **FAMILIES[family]), 8192, shares=True), tree=off)
    with TrueDouble():
        shared, apart = first.update(given, lr=1.0), second.update(given, lr=1.0)
    assert shared["update/token_ratio"] > 1.2
    assert apart["update/token_ratio"] < 1.06
    assert shared["loss"] == pytest.approx(apart["loss"], rel=1e-6)
    wanted, got = moved(first.model, start), moved(second.model, start)
    largest = max(float(grad.abs().max()) for grad in wanted.values())
    for name, grad in wanted.items():
        assert float((got[name] - grad).abs().max()) < BOUND * largest, name
