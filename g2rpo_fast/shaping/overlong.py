"""A penalty that grows over the last tokens before the limit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from g2rpo_fast.bounds import Gt, Le
from g2rpo_fast.pieces import Scored, Shaping
from g2rpo_fast.types import Rewards


@dataclass(frozen=True, kw_only=True)
class Overlong(Shaping):
    """R_i += 0 up to L - C tokens, then ((L - C) - |o_i|) / C, -1 at L tokens, and for a response cut off.

    L = rollout.max_tokens, C = share x L; |o_i| counts guidance, which takes of the same limit. DAPO's soft
    punishment of overlong responses (arXiv 2503.14476, equation 13). Evidence: code (verl).
    """

    use = "overlong"
    share: Annotated[float, Gt(0), Le(1)] = 0.2
    """C, as a share of the most tokens; there 4096 of 20480."""
    weight: Annotated[float, Gt(0)] = 1.0
    """Of the penalty in the sum of rewards."""

    def __call__(self, scored: Scored) -> Rewards:
        most = scored.clock.max_tokens
        cache = self.share * most
        length_R = np.asarray([len(rollout.response_ids) for rollout in scored.rollouts], np.float64)
        cut_R = np.asarray([rollout.finish_reason == "length" for rollout in scored.rollouts], np.bool_)
        penalty_R = np.clip((most - cache - length_R) / cache, -1.0, 0.0)
        return scored.rewards.plus(self.use, np.where(cut_R, -1.0, penalty_R), self.weight)
