"""Of each group's rollouts those are trained on whose rewards vary most."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from g2rpo_fast.bounds import Gt, Le
from g2rpo_fast.pieces import Memory, Round, Scored


@dataclass(frozen=True, kw_only=True)
class MaxVariance(Round):
    """Keeps, of a group of n, the m = share x n rows (at least 2) whose rewards have the largest variance:
    the best, over i = 0..m, of the i highest and the m - i lowest. Advantages are relative to those kept.

    PODS (arXiv 2504.13818). Evidence: code (YixuanEvenXu/pods). Rows that no channel applies to are dropped.
    """

    use = "max_variance"
    share: Annotated[float, Gt(0), Le(1)] = 0.25
    """m / n; there 16 of 64."""

    def settle(self, scored: Scored, memory: Memory) -> Scored:
        group_R, total_R = scored.group_R, scored.rewards.total_R
        judged_R = ~np.isnan(scored.rewards.reward_RK).all(axis=1)
        kept: list[int] = []
        for group in np.unique(group_R):
            rows = np.flatnonzero((group_R == group) & judged_R)
            most = max(round(self.share * int((group_R == group).sum())), 2)
            kept += rows[most_varied(total_R[rows].tolist(), most)].tolist()
        return scored.keep(sorted(kept))


def most_varied(rewards: Sequence[float], most: int) -> list[int]:
    """`most` places of the largest variance, all where there are no more; of equal rewards the first."""
    order = sorted(range(len(rewards)), key=lambda place: -rewards[place])
    if most >= len(rewards):
        return order
    splits = [order[:high] + order[len(order) - (most - high) :] for high in range(most, -1, -1)]
    return max(splits, key=lambda places: _variance([rewards[place] for place in places]))


def _variance(values: Sequence[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.fsum((value - mean) ** 2 for value in values)
