"""Silent groups make room for copies of valuable ones, whose advantages are damped."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from g2rpo_fast.credit import Center, Copies, Std, advantages
from g2rpo_fast.pieces import Scored
from g2rpo_fast.rounds import Revalue
from g2rpo_fast.rounds.revalue import values
from scored import CLOCK, NO_STORE, scored_of

LOUD = [1.0, 0.0, 0.0, 0.0]


def step_of(*groups: list[float], seed: int = 0) -> Scored:
    rewards = [[reward] for group in groups for reward in group]
    numbers = [number for number, group in enumerate(groups) for _ in group]
    return replace(scored_of(rewards, numbers), clock=replace(CLOCK, seed=seed))


def test_value_is_the_worked_example() -> None:
    groups, value_Q = values(step_of(LOUD, [0.0] * 4, [1.0] * 4, [1.0, 1.0, 1.0, 0.0]))
    assert groups.tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(value_Q, [0.375, 0.0, 0.0, 0.125], rtol=1e-12)


def test_silent_groups_become_copies_of_others() -> None:
    scored = step_of(LOUD, [0.0] * 4, [1.0] * 4, [1.0, 0.0])
    kept = Revalue().settle(scored, None)
    assert np.unique(kept.group_R).tolist() == [0, 1, 2, 3]
    of_group = {g: [r for r in kept.rollouts if r.group == g] for g in range(4)}
    for group in (1, 2):  # whole groups of the same prompt, with their own rewards
        copied = {rollout.prompt.id for rollout in of_group[group]}
        assert copied in ({"train:0"}, {"train:3"})
        source = int(copied.pop()[-1])
        assert [r.member for r in of_group[group]] == [r.member for r in of_group[source]]
        paid = kept.rewards.total_R
        assert paid[kept.group_R == group].tolist() == paid[kept.group_R == source].tolist()
    assert kept.rollouts == Revalue().settle(scored, None).rollouts


def test_copies_are_drawn_by_value() -> None:
    """.375 against .125: three of four."""
    drawn = Counter[str]()
    for seed in range(400):
        kept = Revalue().settle(step_of(LOUD, [0.0] * 4, [1.0, 1.0, 1.0, 0.0], seed=seed), None)
        drawn[next(r.prompt.id for r in kept.rollouts if r.group == 1)] += 1
    assert abs(drawn["train:0"] / 400 - 0.75) < 4 * np.sqrt(0.75 * 0.25 / 400)


def test_without_a_silent_or_without_a_loud_group_all_stay() -> None:
    for scored in (step_of(LOUD, [1.0, 0.0]), step_of([0.0] * 2, [1.0] * 2)):
        assert Revalue().settle(scored, None) is scored


@pytest.mark.parametrize(("kappa", "weight"), [(1.0, 1.0), (0.0, 2.0), (0.5, 2**0.5)])
def test_copies_weigh_as_kappa_says(kappa: float, weight: float) -> None:
    """Two copies with kappa 1 weigh as one."""
    kept = Revalue().settle(step_of(LOUD, [0.0] * 4), None)
    assert len(kept.rollouts) == 8
    a_R = advantages((Center(), Std(), Copies(kappa=kappa)), kept, NO_STORE)
    alone = advantages((Center(), Std()), step_of(LOUD), NO_STORE)
    np.testing.assert_allclose(a_R[:4] + a_R[4:], weight * alone, rtol=1e-12)


def test_a_prompt_that_is_there_once_keeps_its_advantage() -> None:
    assert Copies(kappa=1.0)(np.array([2.0, -1.0]), step_of([1.0], [0.0]), NO_STORE).tolist() == [2.0, -1.0]
