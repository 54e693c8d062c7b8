"""Groups of medium difficulty whose answers differ weigh more."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from g2rpo_fast.bounds import Ge, Gt
from g2rpo_fast.own import PieceError
from g2rpo_fast.pieces import Credit, PromptStore, Scored
from g2rpo_fast.types import Doubles

ROUNDING = 1e-9
"""Of a sum of rewards in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class PuzzleCurriculum(Credit):
    """a_i scale d (1 - d) disp^gamma, d = the group's mean reward, in [0, 1]; after `center`.

    disp = (M - 1) / (G - 1), M distinct answers of a group of G (orders of pieces); with `num_choices` K the
    entropy of the answers' shares / log K. Rows without an answer are one answer; a group of one weighs 0.
    PC-GRPO (arXiv 2512.14944). Evidence: paper.
    """

    use = "puzzle_curriculum"
    compares = True
    scale: Annotated[float, Gt(0)] = 4.0
    """4 makes d (1 - d) at most 1."""
    gamma: Annotated[float, Ge(0)] = 0.5
    """Power of the dispersion; 0 = it does not count."""
    num_choices: Annotated[int, Ge(2)] | None = None
    """Options of a question with choices; none = answers are orders."""

    def __call__(self, a_R: Doubles, scored: Scored, store: PromptStore) -> Doubles:
        answers, group_R, total_R = scored.answers, scored.group_R, scored.rewards.total_R
        outside = total_R[np.abs(total_R - 0.5) > 0.5 + ROUNDING]
        if len(outside):
            raise PieceError(f"credit.{self.use}: wanted rewards in [0, 1], got {outside[0]}")
        factor_R = np.zeros(len(a_R))
        for group in np.unique(group_R):
            rows = np.flatnonzero(group_R == group)
            reward = math.fsum(total_R[rows].tolist()) / len(rows)
            spread = self.dispersion([answers[row] for row in rows])
            factor_R[rows] = self.scale * max(reward * (1 - reward), 0.0) * spread**self.gamma
        return a_R * factor_R

    def dispersion(self, answers: Sequence[str | None]) -> float:
        """Of a group's answers: 0 = all equal, 1 = as different as they can be."""
        counts, size = Counter(answers), len(answers)
        if self.num_choices is None:
            return (len(counts) - 1) / max(size - 1, 1)
        entropy = math.fsum(-n / size * math.log(n / size) for n in counts.values())
        return entropy / math.log(self.num_choices)
