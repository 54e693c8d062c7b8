"""The most accurate groups of a batch pay for length."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from g2rpo_fast.bounds import Ge, Gt, Le
from g2rpo_fast.credit.groups import deviations, sigmoids
from g2rpo_fast.pieces import Scored, Shaping
from g2rpo_fast.types import Bools, Rewards


@dataclass(frozen=True, kw_only=True)
class LengthPenalty(Shaping):
    """R_i -= alpha sigmoid((|o_i| - mean) / std) of right answers, in the batch's top share of groups.

    Groups are ranked by accuracy, equal ones in the batch's order; mean and std (sample; z is 0 where it is
    0) are over the group's right answers. |o_i| counts guidance. GRPO-lambda of efficient reasoning (arXiv
    2505.18086). Evidence: notes (alpha is a note's; which std is open).
    """

    use = "length_penalty"
    top: Annotated[float, Gt(0), Le(1)] = 0.2
    """Share of the groups, rounded up."""
    alpha: Annotated[float, Ge(0)] = 0.6
    """Most that length costs."""

    def __call__(self, scored: Scored) -> Rewards:
        right_R = (scored.rewards.accuracy_R > 0) & self.in_top_groups(scored)
        lengths = [len(rollout.response_ids) for rollout in scored.rollouts]
        length_R = np.asarray(lengths, np.float64)[right_R]
        deviation_R, std_R = deviations(length_R, scored.group_R[right_R])
        penalty_R = np.zeros(len(lengths))
        penalty_R[right_R] = -self.alpha * sigmoids(deviation_R / np.where(std_R > 0, std_R, 1.0))
        return scored.rewards.plus(self.use, penalty_R)

    def in_top_groups(self, scored: Scored) -> Bools:
        """[R] whether the row's group is one of the most accurate; groups without an accuracy are none."""
        accuracy_R, group_R = scored.rewards.accuracy_R, scored.group_R
        judged_R = ~np.isnan(accuracy_R)
        groups, index_R = np.unique(group_R[judged_R], return_inverse=True)
        accuracy_Q = np.bincount(index_R, accuracy_R[judged_R]) / np.maximum(np.bincount(index_R), 1)
        best = np.argsort(-accuracy_Q, kind="stable")[: math.ceil(self.top * len(groups))]
        return np.isin(group_R, groups[best])
