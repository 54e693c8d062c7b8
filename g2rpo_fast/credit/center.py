"""The group's mean as baseline."""

from __future__ import annotations

from dataclasses import dataclass

from g2rpo_fast.credit.groups import deviations
from g2rpo_fast.pieces import Credit, PromptStore, Scored
from g2rpo_fast.types import Doubles


@dataclass(frozen=True, kw_only=True)
class Center(Credit):
    """a_i - mean of its group; a group of one, or of equal rewards, gets 0.

    By itself Dr. GRPO's advantage (arXiv 2503.20783); before `std` that of GRPO (arXiv 2402.03300).

    Evidence: code (TRL).
    """

    use = "center"

    def __call__(self, a_R: Doubles, scored: Scored, store: PromptStore) -> Doubles:
        return deviations(a_R, scored.group_R)[0]
