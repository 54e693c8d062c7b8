"""PODS: the rows of a group whose rewards vary most are kept."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest

from g2rpo_fast.credit import Center, Std, advantages
from g2rpo_fast.rounds import MaxVariance, settled
from g2rpo_fast.rounds.max_variance import most_varied
from scored import NO_STORE, scored_of


def test_the_two_that_differ_most() -> None:
    rewards = [1, 1, 0, 0, 0.5]
    assert sorted(rewards[place] for place in most_varied(rewards, 2)) == [0, 1]
    scored = scored_of([[reward] for reward in rewards] + [[7.0]], [3] * 5 + [1])
    kept = settled((MaxVariance(share=0.4),), scored, {})
    assert kept.rewards.total_R.tolist() == [1.0, 0.0, 7.0]
    assert kept.group_R.tolist() == [3, 3, 1]
    half = math.sqrt(0.5)
    a_R = advantages((Center(), Std(eps=1e-12)), kept, NO_STORE)
    np.testing.assert_allclose(a_R, [half, -half, 0], rtol=1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_no_other_choice_varies_more(seed: int) -> None:
    random = np.random.default_rng(seed)
    rewards = random.choice([random.normal(size=8), random.integers(0, 3, 8) / 2]) + 1000 * (seed % 2)
    for most in range(2, 9):
        kept = most_varied(rewards.tolist(), most)
        assert len(set(kept)) == most
        best = max(np.var(rewards[list(chosen)]) for chosen in combinations(range(8), most))
        assert np.var(rewards[kept]) == pytest.approx(best, rel=1e-9, abs=1e-15)


def test_equal_rewards_and_small_groups_keep_the_first() -> None:
    assert most_varied([0.1] * 5, 2) == [0, 1]
    scored = scored_of([[1.0]] * 3 + [[0.0], [1.0]], [0, 0, 0, 1, 1])
    kept = settled((MaxVariance(share=0.01),), scored, {})
    assert kept.group_R.tolist() == [0, 0, 1, 1]
    assert settled((MaxVariance(share=1.0),), scored, {}).group_R.tolist() == [0, 0, 0, 1, 1]


def test_rows_that_no_channel_applies_to_are_not_kept() -> None:
    scored = scored_of([[math.nan], [1.0], [0.5], [0.0], [math.nan]], [0, 0, 0, 0, 1])
    kept = settled((MaxVariance(share=0.5),), scored, {})
    assert kept.rewards.total_R.tolist() == [1.0, 0.0]
    assert settled((MaxVariance(),), scored_of(np.zeros((0, 1)), []), {}).rollouts == ()
