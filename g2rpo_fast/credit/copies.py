"""Prompts that are there several times count for less each time."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from g2rpo_fast.bounds import Ge
from g2rpo_fast.pieces import Credit, PromptStore, Scored
from g2rpo_fast.types import Doubles


@dataclass(frozen=True, kw_only=True)
class Copies(Credit):
    """a_i / c^kappa, c = the step's groups of the row's prompt. kappa 1: copies weigh as one, 0: in full.

    In place of the value smoothing of VSPO (arXiv 2512.07478), after `center` and `std`. Evidence: approx
    (the paper's function was not seen; this one is ours).
    """

    use = "copies"
    kappa: Annotated[float, Ge(0)] = 0.5
    """0 = copies count in full, 1 = as one."""

    def __call__(self, a_R: Doubles, scored: Scored, store: PromptStore) -> Doubles:
        number = Counter(prompt for prompt, _ in {(r.prompt.id, r.group) for r in scored.rollouts})
        return a_R / np.asarray([number[r.prompt.id] for r in scored.rollouts], np.float64) ** self.kappa
