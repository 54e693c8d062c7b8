"""Harder questions weigh more."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from g2rpo_fast.bounds import Gt
from g2rpo_fast.credit.groups import differs
from g2rpo_fast.pieces import Credit, PromptStore, Scored
from g2rpo_fast.types import Doubles


@dataclass(frozen=True, kw_only=True)
class Difficulty(Credit):
    """a_i B softmax_q(-acc_q / T) over the B groups q whose members differ; acc_q = the group's accuracy.

    A group that nobody solved, or that accuracy does not apply to, and that differs by other rewards, counts
    as acc 1. DGPO (arXiv 2601.20614). Evidence: code (AMAP-ML/MathForge).
    """

    use = "difficulty"
    temperature: Annotated[float, Gt(0)] = 2.0
    """T: the higher, the more alike."""

    def __call__(self, a_R: Doubles, scored: Scored, store: PromptStore) -> Doubles:
        valid_R = differs(a_R, scored.group_R)
        accuracy_R, group_R = scored.rewards.accuracy_R[valid_R], scored.group_R[valid_R]
        index_R = np.unique(group_R, return_inverse=True)[1]
        judged_R = ~np.isnan(accuracy_R)
        right_Q = np.bincount(index_R, np.where(judged_R, accuracy_R, 0.0))
        share_Q = right_Q / np.maximum(np.bincount(index_R, judged_R.astype(np.float64)), 1)
        acc_Q = np.where(share_Q > 0, share_Q, 1.0)
        easier = ((acc_Q - acc_Q.min(initial=1.0)) / self.temperature).tolist()
        weight_Q = np.asarray([math.exp(-above) for above in easier])
        factor_R = np.ones(len(a_R))
        factor_R[valid_R] = (weight_Q * len(weight_Q) / math.fsum(weight_Q))[index_R]
        return a_R * factor_R
