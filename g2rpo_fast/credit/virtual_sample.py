"""Standardisation beside a perfect sample that nobody drew."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from g2rpo_fast.bounds import Gt
from g2rpo_fast.credit.groups import deviations
from g2rpo_fast.pieces import Credit, PromptStore, Scored
from g2rpo_fast.types import Doubles


@dataclass(frozen=True, kw_only=True)
class VirtualSample(Credit):
    """(a_i - mean) / (std + eps) over the group and one virtual member of value `best`; sample std.

    A group that fails entirely gets advantages below 0, one of the best reward exactly 0. NGRPO (arXiv
    2509.18851), in place of `center` and `std`. Evidence: code (nangongrui-ngr/NGRPO).
    """

    use = "virtual_sample"
    best: float = 1.0
    """The best reward that there is."""
    eps: Annotated[float, Gt(0)] = 1e-6
    """Added to the standard deviation."""

    def __call__(self, a_R: Doubles, scored: Scored, store: PromptStore) -> Doubles:
        groups = np.unique(scored.group_R)
        value_R = np.concatenate([a_R, np.full(len(groups), self.best)])
        deviation_R, std_R = deviations(value_R, np.concatenate([scored.group_R, groups]))
        return (deviation_R / (std_R + self.eps))[: len(a_R)]
