"""Groups without a signal are replaced by groups of other prompts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from g2rpo_fast.bounds import Ge, Gt, Le
from g2rpo_fast.pieces import Memory, More, Round, Scored
from g2rpo_fast.types import Ask


@dataclass(frozen=True, kw_only=True)
class Resample(Round):
    """Groups whose members were all paid alike are dropped, and as many other prompts asked, round after
    round, until the step has its number of groups or `most` rounds are over.

    Dynamic sampling of DAPO (arXiv 2503.14476; there a whole batch is drawn anew each time, and what is left
    over is thrown away). With `enough` below 1 it ends earlier, and groups without a signal fill the step:
    GPG (arXiv 2504.02546). Evidence: code (verl, AMAP-ML/GPG).
    """

    use = "resample"
    repeats = True
    takes_more = True
    most: Annotated[int, Ge(2)] = 10
    """Rounds of a step, the first included."""
    enough: Annotated[float, Gt(0), Le(1)] = 1.0
    """Share of the step's groups that must have a signal."""

    def again(self, scored: Scored, memory: Memory, more: More) -> list[Ask]:
        missing = math.ceil(self.enough * self._wanted(scored)) - len(_teaching(scored))
        rounds = 1 + max(rollout.round for rollout in scored.rollouts)
        return more(missing) if missing > 0 and rounds < self.most else []

    def settle(self, scored: Scored, memory: Memory) -> Scored:
        kept, wanted = _teaching(scored), self._wanted(scored)
        if self.enough < 1:
            kept = [*kept, *(group for group in np.unique(scored.group_R).tolist() if group not in kept)]
        return scored.keep(np.flatnonzero(np.isin(scored.group_R, kept[:wanted])).tolist())

    def _wanted(self, scored: Scored) -> int:
        """Groups of the first round."""
        return len({rollout.group for rollout in scored.rollouts if rollout.round == 0})


def _teaching(scored: Scored) -> list[int]:
    """Groups with members of different reward, in order."""
    group_R, total_R = scored.group_R, scored.rewards.total_R
    return [int(group) for group in np.unique(group_R) if len(np.unique(total_R[group_R == group])) > 1]
