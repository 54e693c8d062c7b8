"""The mean of the others as baseline."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from g2rpo_fast.credit.groups import deviations
from g2rpo_fast.pieces import Credit, PromptStore, Scored
from g2rpo_fast.types import Doubles


@dataclass(frozen=True, kw_only=True)
class Rloo(Credit):
    """a_i - mean over the others of its group = n / (n - 1) (a_i - mean of the group); alone, it gets 0.

    RLOO (arXiv 2402.14740).

    Evidence: code (TRL).
    """

    use = "rloo"

    def __call__(self, a_R: Doubles, scored: Scored, store: PromptStore) -> Doubles:
        _, group_R, size_Q = np.unique(scored.group_R, return_inverse=True, return_counts=True)
        return deviations(a_R, group_R)[0] * (size_Q / np.maximum(size_Q - 1, 1))[group_R]
