"""A reward for responses as long as a budget that shrinks over the run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from g2rpo_fast.bounds import Ge, Gt, Le
from g2rpo_fast.pieces import Clock, Memory, Scored, Shaping
from g2rpo_fast.types import Rewards


@dataclass(frozen=True, kw_only=True)
class LengthBudget(Shaping):
    """R_i += weight triangle(l_i / L): l / L up to L = 1, then 2 - l / L, 0 from 2 L on; l = tokens of the
    response, guidance included. L = max(1, first decay^floor(stages step / steps)), steps those of the run.

    Train Long, Think Short (arXiv 2508.08940). Evidence: paper. What the prompt says of the budget is left to
    the data.
    """

    use = "length_budget"
    first: Annotated[float, Ge(1)] = 256.0
    """Tokens in the first stage."""
    decay: Annotated[float, Gt(0), Le(1)] = 0.7
    """By which the budget shrinks from stage to stage."""
    stages: Annotated[int, Ge(1)] = 4
    """In each of which the budget stays; there 150 of 600 steps each."""
    weight: Annotated[float, Gt(0)] = 0.5
    """There 0.3 beside 0.6 for a right answer."""

    def budget(self, clock: Clock) -> float:
        """L, in tokens."""
        return max(1.0, self.first * self.decay ** (self.stages * clock.step // max(clock.total_steps, 1)))

    def notes(self, memory: Memory, clock: Clock) -> dict[str, float]:
        return {"shaping/length_budget": self.budget(clock)}

    def __call__(self, scored: Scored) -> Rewards:
        length_R = np.asarray([len(rollout.response_ids) for rollout in scored.rollouts], np.float64)
        share_R = length_R / self.budget(scored.clock)
        return scored.rewards.plus(
            self.use, np.clip(np.minimum(share_R, 2 - share_R), 0.0, None), self.weight
        )
