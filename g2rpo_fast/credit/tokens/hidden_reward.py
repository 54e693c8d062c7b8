"""Only tokens that move the likelihood of right answers are trained, and some of these more than others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from g2rpo_fast.bounds import Ge, Le
from g2rpo_fast.pieces import RowTokens, Scored, TokenCredit
from g2rpo_fast.types import Doubles


@dataclass(frozen=True, kw_only=True)
class HiddenReward(TokenCredit):
    """a_t <- 1[|THR_t| > tau] (1 + lean sign THR_t) a_t,  THR_t = s_t in right rows, -s_t in others.

    s_t = the token's influence on its group's right rows (`learner/influence.py`). tau = beta times the
    smallest, over the group's right rows, of the mean THR of a row's tokens. Groups without a right row are
    left alone. THR (arXiv 2510.03669). Evidence: notes; whether a row counts for its own tau is our reading.
    """

    use = "hidden_reward"
    needs = frozenset({"influence"})
    lean: Annotated[float, Ge(-1), Le(1)] = 0.1
    """Above 0 exploits: more weight for what right answers are likely by; below 0 explores; 0 = mask only."""
    beta: Annotated[float, Ge(0)] = 1.0
    """Scale of the threshold; 0 = every token that has an influence."""

    def __call__(self, a_N: Doubles, tokens: RowTokens, scored: Scored) -> Doubles:
        assert tokens.influence_N is not None
        right_R = scored.rewards.total_R > 0
        hidden_N = np.where(right_R[tokens.row_N], 1.0, -1.0) * tokens.influence_N
        tau: dict[int, float] = {}
        for row, at in tokens.of_rows.items():
            if right_R[row]:
                group = int(scored.group_R[row])
                tau[group] = min(tau.get(group, np.inf), self.beta * float(hidden_N[at].mean()))
        tau_N = np.asarray([tau.get(int(group), np.nan) for group in scored.group_R])[tokens.row_N]
        factor_N = (np.abs(hidden_N) > tau_N) * (1 + self.lean * np.sign(hidden_N))
        return np.where(np.isnan(tau_N), a_N, factor_N * a_N)
