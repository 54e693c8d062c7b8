"""Every reward channel standardised by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from g2rpo_fast.bounds import Gt
from g2rpo_fast.credit.groups import deviations
from g2rpo_fast.pieces import Credit, PromptStore, Scored
from g2rpo_fast.types import Doubles


@dataclass(frozen=True, kw_only=True)
class Channels(Credit):
    """sum_k w_k (r_ik - mean of the group) / (std of the group + eps), in place of what came before.

    GDPO (arXiv 2601.05242), with `whiten` after it. A channel counts over the rows of a group that it
    applies to; the others' share of it is 0.

    Evidence: code (TRL's normalize_then_sum).
    """

    use = "channels"
    eps: Annotated[float, Gt(0)] = 1e-4
    """Added to the standard deviation."""

    def __call__(self, a_R: Doubles, scored: Scored, store: PromptStore) -> Doubles:
        rewards = scored.rewards
        sum_R = np.zeros(len(a_R))
        for reward_R, weight in zip(rewards.reward_RK.T, rewards.weight_K, strict=True):
            has_R = ~np.isnan(reward_R)
            deviation_R, std_R = deviations(reward_R[has_R], scored.group_R[has_R])
            sum_R[has_R] += weight * (deviation_R / (std_R + self.eps))
        return sum_R
