"""Neither answers nor labels: length and format alone are the reward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from g2rpo_fast.bounds import Gt, Lt
from g2rpo_fast.pieces import Scored, Shaping
from g2rpo_fast.types import Doubles, Rewards


@dataclass(frozen=True, kw_only=True)
class LengthFormat(Shaping):
    """R_i = R_f + R_l if the format is right, else min(0, R_f + R_l), in place of all that was paid.

    x = |o_i| / L, L = rollout.max_tokens: R_l = 1 - (1 - x/p)^2 up to p, then 1 - 2 ((x - p) / (1 - p))^2.
    Surrogate signals (arXiv 2505.19439). Evidence: paper.
    """

    use = "length_format"
    format: str = "format"
    """The channel that pays R_f, 1 or 0; where it does not apply, the format is wrong."""
    peak: Annotated[float, Gt(0), Lt(1)] = 0.5
    """p: the share of the most tokens that is paid best."""

    def channels(self) -> dict[str, str]:
        return {"format": self.format}

    def __call__(self, scored: Scored) -> Rewards:
        format_R = np.nan_to_num(scored.rewards.channel(self.format))
        lengths = [len(rollout.response_ids) for rollout in scored.rollouts]
        sum_R = format_R + self.length_reward(np.asarray(lengths, np.float64) / scored.clock.max_tokens)
        return scored.rewards.only(self.use, np.where(format_R > 0, sum_R, np.minimum(sum_R, 0.0)))

    def length_reward(self, x_R: Doubles) -> Doubles:
        """[R] R_l of lengths as shares of the most tokens."""
        p = self.peak
        return np.where(x_R <= p, 1 - (1 - x_R / p) ** 2, 1 - 2 * ((x_R - p) / (1 - p)) ** 2)
