"""A budget of tokens that shrinks over the run, and what a response of some length is paid."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from g2rpo_fast.shaping import LengthBudget
from scored import CLOCK, scored_of


def test_the_budget_is_the_worked_example() -> None:
    """256, 179.2, 125.44, 87.81, 61.47: each for 150 of 600 steps, the last after them."""
    at = [LengthBudget().budget(replace(CLOCK, step=step, total_steps=600)) for step in range(0, 601, 75)]
    wanted = np.repeat([256, 179.2, 125.44, 87.81, 61.47], 2)[:-1]
    np.testing.assert_allclose(at, wanted, atol=5e-3)
    assert LengthBudget(first=2.0, decay=0.1).budget(replace(CLOCK, step=9)) == 1.0


def test_the_reward_is_a_triangle_over_the_length() -> None:
    """L tokens pay 1, L/2 and 3L/2 pay .5, 2L and more nothing."""
    scored = scored_of([[1.0]] * 6, [0] * 6, lengths=[10, 5, 15, 20, 40, 1])
    shaped = LengthBudget(first=10.0, decay=1.0)(scored)
    assert shaped.channel("length_budget").tolist() == pytest.approx([1.0, 0.5, 0.5, 0.0, 0.0, 0.1])
    assert shaped.total_R.tolist() == pytest.approx([1.5, 1.25, 1.25, 1.0, 1.0, 1.05])


def test_the_same_response_is_paid_by_the_stage_of_the_run() -> None:
    piece = LengthBudget(first=8.0, decay=0.5, stages=2)
    scored = scored_of([[0.0]], [0], lengths=[8])
    early, late = (replace(CLOCK, step=step, total_steps=10) for step in (4, 5))
    assert piece(replace(scored, clock=early)).channel("length_budget").tolist() == [1.0]
    assert piece(replace(scored, clock=late)).channel("length_budget").tolist() == [0.0]
    assert piece.notes(None, late) == {"shaping/length_budget": 4.0}


@pytest.mark.parametrize(("key", "value"), [("first", 0.5), ("decay", 1.1), ("stages", 0)])
def test_settings_out_of_bounds_are_refused(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"shaping\.length_budget\.{key}: wanted"):
        LengthBudget(**{key: value})  # pyright: ignore[reportArgumentType]
