"""Division by the group's standard deviation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from g2rpo_fast.bounds import Gt
from g2rpo_fast.credit.groups import deviations
from g2rpo_fast.pieces import Credit, PromptStore, Scored
from g2rpo_fast.types import Doubles


@dataclass(frozen=True, kw_only=True)
class Std(Credit):
    """a_i / (std of its group + eps), with the sample standard deviation; that of a group of one is 0.

    GRPO (arXiv 2402.03300), after `center`.

    Evidence: code (TRL).
    """

    use = "std"
    eps: Annotated[float, Gt(0)] = 1e-4
    """Added to the standard deviation."""

    def __call__(self, a_R: Doubles, scored: Scored, store: PromptStore) -> Doubles:
        return a_R / (deviations(a_R, scored.group_R)[1] + self.eps)
