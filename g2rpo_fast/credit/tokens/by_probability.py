"""Advantages that grow with the token's probability."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np

from g2rpo_fast.bounds import Ge
from g2rpo_fast.pieces import RowTokens, Scored, TokenCredit
from g2rpo_fast.types import Doubles


@dataclass(frozen=True, kw_only=True)
class ByProbability(TokenCredit):
    """(slope pi_t + offset) a_t, or 2 sigmoid(slope (pi_t - offset)) a_t, with pi_t under the old policy.

    Gradients of rare tokens are the largest and would drown the others' (arXiv 2505.12929). Evidence: code.
    """

    use = "by_probability"
    needs = frozenset({"old_logp"})
    form: Literal["linear", "sigmoid"] = "linear"
    """How the factor grows with the probability."""
    slope: Annotated[float, Ge(0)] = 0.2
    """Of the line or the sigmoid."""
    offset: Annotated[float, Ge(0)] = 0.8
    """Factor of a token of probability 0 (linear); probability whose factor is 1 (sigmoid)."""

    def __call__(self, a_N: Doubles, tokens: RowTokens, scored: Scored) -> Doubles:
        assert tokens.old_logp_N is not None
        p_N = np.exp(tokens.old_logp_N)
        if self.form == "linear":
            return (self.slope * p_N + self.offset) * a_N
        return 2 / (1 + np.exp(-self.slope * (p_N - self.offset))) * a_N
