"""The KL term whose weight follows the distance."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from g2rpo_fast.objective.terms import KlControlled
from scored import CLOCK, outcome_of, recipe_with, scored_of

SCORED = scored_of([[1.0]], [0])


def after(piece: KlControlled, *distances: float) -> dict[str, float]:
    memory = piece.memory()
    for distance in distances:
        memory = piece.observe(memory, outcome_of(SCORED, {"update/kl": distance}))
    return memory


def test_the_weight_moves_as_in_the_worked_example() -> None:
    """Error 2: I = 2, 5e-4 exp(.05 2 + .01 2) = 5.6375e-4; then error -1: I = .95 2 - 1 = .9."""
    piece = KlControlled()
    assert after(piece, 12.0) == {"coef": pytest.approx(5.6375e-4, rel=1e-5), "sum": 2.0}
    then = after(piece, 12.0, 9.0)
    assert then["sum"] == pytest.approx(0.9)
    assert then["coef"] == pytest.approx(5e-4 * math.exp(0.12 - 0.05 + 0.009), rel=1e-12)
    assert after(piece, 10.0) == piece.memory()


def test_the_weight_stays_within_its_bounds_however_far_the_policy_is() -> None:
    assert after(KlControlled(kp=25.0), 1e6)["coef"] == 1e-2
    assert after(KlControlled(kp=25.0), 0.0)["coef"] == 1e-6


def test_an_update_without_a_token_tells_nothing() -> None:
    piece = KlControlled()
    assert after(piece, math.nan) == piece.memory()
    assert piece.observe(piece.memory(), outcome_of(SCORED)) == piece.memory()


def test_a_step_s_term_has_the_memory_s_weight() -> None:
    piece = KlControlled(target=0.1)
    recipe = recipe_with(terms=(piece,))
    assert recipe.first_memory() == {"terms.kl_controlled": {"coef": 5e-4, "sum": 0.0}}
    memory = recipe.observed(recipe.first_memory(), outcome_of(SCORED, {"update/kl": 2.1}))
    now = recipe.at(memory, CLOCK).terms[0]
    assert now == replace(piece, coef=memory["terms.kl_controlled"]["coef"])
    kernel = now.kernel()
    assert kernel is not None
    assert kernel["kl_coef"] == pytest.approx(5.6375e-4, rel=1e-5)
    assert recipe.noted(memory, CLOCK) == {"terms/kl_coef": kernel["kl_coef"]}
    assert recipe.needs_reference


def test_bounds_that_cross_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"terms\.kl_controlled\.high: wanted at least low = 0\.1, got 0\.01"
    ):
        KlControlled(low=0.1)
