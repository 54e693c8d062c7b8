"""Tokens weigh by how probable they were."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from g2rpo_fast.bounds import Ge, Gt
from g2rpo_fast.pieces import RowTokens, Scored, Weight
from g2rpo_fast.types import Doubles


@dataclass(frozen=True, kw_only=True)
class Confident(Weight):
    """w_t = clip(alpha (sigmoid(tau pi_t) - mu), low, high), pi_t the token's probability (old policy).

    TR-GRPO (arXiv 2511.00066). Evidence: approx. The sigmoid's argument is a reading: with pi / tau the
    published constants give 1 everywhere. The weight stands outside the surrogate's min; the term
    `confident_clip` has it inside.
    """

    use = "confident"
    needs = frozenset({"old_logp"})
    alpha: Annotated[float, Gt(0)] = 2.0
    """Scale of the sigmoid."""
    tau: Annotated[float, Gt(0)] = 9.0
    """How fast it rises with the probability."""
    mu: Annotated[float, Ge(0)] = 0.25
    """Taken off the sigmoid."""
    low: Annotated[float, Gt(0)] = 1.0
    """Least weight."""
    high: Annotated[float, Gt(0)] = 1.4
    """Largest weight."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.high < self.low:
            raise ValueError(f"weights.confident.high: wanted at least low = {self.low}, got {self.high}")

    def __call__(self, tokens: RowTokens, scored: Scored) -> Doubles:
        assert tokens.old_logp_N is not None
        gate_N = 1 / (1 + np.exp(-self.tau * np.exp(tokens.old_logp_N)))
        return np.clip(self.alpha * (gate_N - self.mu), self.low, self.high)
