"""A penalty for saying the same words again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from g2rpo_fast.bounds import Ge, Gt
from g2rpo_fast.pieces import Scored, Shaping
from g2rpo_fast.types import Rewards


@dataclass(frozen=True, kw_only=True)
class Repetition(Shaping):
    """R_i -= weight (1 - distinct n-grams / n-grams) of the sampled tokens; 0 for fewer than n of them.

    N-gram repetition penalty of Demystifying Long CoT (arXiv 2502.03373), as a part of the row's reward.
    Evidence: code (the authors' over words, TRL's over tokens, as here). Whether the paper's own runs charged
    rows so, or each token of a repeated n-gram, was not read.
    """

    use = "repetition"
    n: Annotated[int, Ge(1)] = 3
    """Tokens of an n-gram."""
    weight: Annotated[float, Gt(0)] = 1.0
    """Most that repetition costs."""

    def __call__(self, scored: Scored) -> Rewards:
        sampled = [rollout.response_ids[rollout.guidance_len :] for rollout in scored.rollouts]
        penalty_R = np.asarray([-self.repeated(ids) for ids in sampled], np.float64)
        return scored.rewards.plus(self.use, penalty_R, self.weight)

    def repeated(self, ids: Sequence[int]) -> float:
        """The share of n-grams that were there before."""
        grams = [tuple(ids[start : start + self.n]) for start in range(len(ids) - self.n + 1)]
        return 1 - len(set(grams)) / len(grams) if grams else 0.0
