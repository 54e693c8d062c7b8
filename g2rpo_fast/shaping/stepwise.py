"""Where a whole group fails, the reward grows with how far a response gets before its first wrong step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from g2rpo_fast.bounds import Ge, Gt, Le
from g2rpo_fast.credit.groups import sigmoids, totals
from g2rpo_fast.pieces import Scored, Shaping
from g2rpo_fast.types import Rewards


@dataclass(frozen=True, kw_only=True)
class Stepwise(Shaping):
    """R_i += sigmoid(beta (x_i - gamma)) in groups without a success, x_i in [0, 1] the progress of a row.

    Progress is a reward channel, whose weight may be 0; rows that it does not apply to get nothing. A group
    none of whose rows has an accuracy is left alone. SGPO (arXiv 2505.11595).

    Evidence: notes (reviews confirm that it grows with x; beta and gamma are from an implementation by
    others).
    """

    use = "stepwise"
    channel: str = "progress"
    """The share of a response before its first wrong step."""
    beta: Annotated[float, Gt(0)] = 5.0
    """How steep the sigmoid is."""
    gamma: Annotated[float, Ge(0), Le(1)] = 0.5
    """Progress that is paid half."""

    def channels(self) -> dict[str, str]:
        return {"channel": self.channel}

    def __call__(self, scored: Scored) -> Rewards:
        rewards, group_R = scored.rewards, scored.group_R
        judged_R = ~np.isnan(rewards.accuracy_R)
        right_R = totals(np.where(judged_R, rewards.accuracy_R, 0.0), group_R)
        failed_R = (right_R == 0) & (totals(judged_R.astype(np.float64), group_R) > 0)
        grade_R = sigmoids(self.beta * (rewards.channel(self.channel) - self.gamma))
        return rewards.plus(self.use, np.where(failed_R, grade_R, np.nan))
