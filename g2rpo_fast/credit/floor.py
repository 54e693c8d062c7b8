"""Negative advantages are bounded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from g2rpo_fast.bounds import Le
from g2rpo_fast.pieces import Credit, PromptStore, Scored
from g2rpo_fast.types import Doubles


@dataclass(frozen=True, kw_only=True)
class Floor(Credit):
    """max(a_i, least). GRPO-lambda's clamp (arXiv 2510.00194). Evidence: notes."""

    use = "floor"
    least: Annotated[float, Le(0)] = -0.1
    """Advantages below it become it."""

    def __call__(self, a_R: Doubles, scored: Scored, store: PromptStore) -> Doubles:
        return np.maximum(a_R, self.least)
