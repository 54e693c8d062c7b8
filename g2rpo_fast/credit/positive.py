"""Only what was paid more than nothing is learnt from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from g2rpo_fast.pieces import Credit, PromptStore, Scored
from g2rpo_fast.types import Doubles


@dataclass(frozen=True, kw_only=True)
class Positive(Credit):
    """max(a_i, 0): first in the chain, the raw positive reward, without a baseline.

    RAFT and RAFT++ (arXiv 2504.11343). Evidence: code (RLHFlow/Minimal-RL).
    """

    use = "positive"

    def __call__(self, a_R: Doubles, scored: Scored, store: PromptStore) -> Doubles:
        return np.maximum(a_R, 0.0)
