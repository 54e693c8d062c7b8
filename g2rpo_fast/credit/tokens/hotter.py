"""Right answers as a hotter or cooler policy would weigh them: entropy is steered to a target."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np

from g2rpo_fast.bounds import Ge, Gt, Lt
from g2rpo_fast.pieces import Clock, Memory, Outcome, RowTokens, Scored, TokenCredit
from g2rpo_fast.types import Doubles


@dataclass(frozen=True, kw_only=True)
class Hotter(TokenCredit):
    """a_t <- (1 - alpha) a_t + alpha c_i w_t,  w_t = exp(log pi_old^(T)(o_t) - log pi_old(o_t)).

    c_i = 1 where the row's reward exceeds `success`; alpha = x / (1 + x), x = min(|target - H|, most) / mean
    c; T = `hot` where H <= target, else `cold`. H is the last update's mean of -log p of its tokens. A batch
    without a right answer takes mean c = 1 / rows: there is nothing to add, and no division by 0.
    DCPO (arXiv 2601.12730). Evidence: code.
    """

    use = "hotter"
    needs = frozenset({"old_logp", "hot_logp"})
    steers = "entropy"
    target: Annotated[float, Ge(0)] = 0.5
    """H0, nats."""
    hot: Annotated[float, Gt(1)] = 1.2
    """Second temperature where the entropy is at or below the target."""
    cold: Annotated[float, Gt(0), Lt(1)] = 0.8
    """Second temperature above it."""
    most: Annotated[float, Gt(0)] = 0.1
    """Distance from the target, in nats, beyond which nothing more is added."""
    success: float = 0.05
    """A row whose reward exceeds it is right."""
    entropy: Annotated[float, Ge(0)] = 0.0
    """H before the first update; then it is the memory's."""

    def memory(self) -> Memory:
        return {"entropy": self.entropy}

    def at(self, memory: Memory, clock: Clock) -> Hotter:
        return replace(self, entropy=memory["entropy"])

    def observe(self, memory: Memory, outcome: Outcome) -> Memory:
        """An update without a token tells nothing."""
        logp = outcome.stats.get("update/logp", math.nan)
        return {"entropy": max(-logp, 0.0)} if math.isfinite(logp) else memory

    def notes(self, memory: Memory, clock: Clock) -> dict[str, float]:
        return {"credit/entropy": memory["entropy"]}

    def hot_temperature(self) -> float:
        return self.hot if self.entropy <= self.target else self.cold

    def __call__(self, a_N: Doubles, tokens: RowTokens, scored: Scored) -> Doubles:
        assert tokens.old_logp_N is not None
        assert tokens.hot_logp_N is not None
        right_R = (scored.rewards.total_R > self.success).astype(np.float64)
        x = min(abs(self.target - self.entropy), self.most) / max(right_R.mean(), 1 / len(right_R))
        alpha = x / (1 + x)
        w_N = np.exp(tokens.hot_logp_N - tokens.old_logp_N)
        return (1 - alpha) * a_N + alpha * right_R[tokens.row_N] * w_N
