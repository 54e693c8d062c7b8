"""Division by the group's mean absolute deviation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from g2rpo_fast.bounds import Gt
from g2rpo_fast.credit.groups import deviations, totals
from g2rpo_fast.pieces import Credit, PromptStore, Scored
from g2rpo_fast.types import Doubles


@dataclass(frozen=True, kw_only=True)
class Mad(Credit):
    """G a_i / (sum_j |a_j - mean of the group| + eps), after `center`.

    The absolute advantages of every group with a signal then sum to G, easy or hard. DGPO (arXiv
    2601.20614). Evidence: code (AMAP-ML/MathForge).
    """

    use = "mad"
    eps: Annotated[float, Gt(0)] = 1e-4
    """Added to the sum of deviations."""

    def __call__(self, a_R: Doubles, scored: Scored, store: PromptStore) -> Doubles:
        group_R = scored.group_R
        spread_R = totals(np.abs(deviations(a_R, group_R)[0]), group_R)
        return totals(np.ones(len(a_R)), group_R) * a_R / (spread_R + self.eps)
