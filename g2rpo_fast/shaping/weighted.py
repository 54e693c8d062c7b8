"""Named channels, weighted, with accuracy above all."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import numpy as np

from g2rpo_fast.bounds import Ge
from g2rpo_fast.pieces import Scored, Shaping
from g2rpo_fast.types import Rewards


@dataclass(frozen=True, kw_only=True)
class Weighted(Shaping):
    """R_i = accuracy acc_i + sum_k w_k R_ik, in place of all that was paid; what does not apply pays 0.

    acc_i = 1 where the row succeeded by the channel that counts as accuracy. CRPO (arXiv 2512.00601): 10 acc
    + format + rule. Evidence: approx (the paper's equation was not seen).
    """

    use = "weighted"
    accuracy: Annotated[float, Ge(0)] = 10.0
    """Paid for a success."""
    weights: dict[str, float] = field(default_factory=dict)
    """Channel -> w_k."""

    def channels(self) -> dict[str, str]:
        return {f"weights.{name}": name for name in self.weights}

    def __call__(self, scored: Scored) -> Rewards:
        rewards = scored.rewards
        total_R = self.accuracy * np.nan_to_num(rewards.accuracy_R)
        for name, weight in self.weights.items():
            total_R = total_R + weight * np.nan_to_num(rewards.channel(name))
        return rewards.only(self.use, total_R)
