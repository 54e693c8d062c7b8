"""Channels that open one after the other."""

from __future__ import annotations

import math

import numpy as np

from g2rpo_fast.shaping import Stages
from scored import scored_of

NONE = math.nan


def test_a_stage_is_paid_only_behind_all_before_it() -> None:
    """A call that parses 1, format 1, quality .5; a weight of 2 on quality."""
    paid = [[1.0, 1.0, 0.5], [1.0, 0.0, 0.5], [0.0, 1.0, 0.5], [1.0, NONE, 0.5], [NONE, 0.0, 1.0]]
    shaped = Stages()(scored_of(paid, [0] * 5, weights=[1.0, 1.0, 2.0]))
    wanted = [[1.0, 1.0, 0.5], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [1.0, NONE, 0.5], [NONE, 0.0, 0.0]]
    np.testing.assert_array_equal(shaped.reward_RK, wanted)
    assert shaped.total_R.tolist() == [3.0, 1.0, 0.0, 2.0, 0.0]


def test_one_channel_is_paid_as_it_is() -> None:
    scored = scored_of([[0.0], [-1.0], [2.0]], [0, 0, 0])
    assert Stages()(scored).total_R.tolist() == [0.0, -1.0, 2.0]
