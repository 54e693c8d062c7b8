"""Groups without a difference are rejected."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from g2rpo_fast.credit.groups import differs
from g2rpo_fast.pieces import Credit, PromptStore, Scored
from g2rpo_fast.types import Doubles


@dataclass(frozen=True, kw_only=True)
class Reject(Credit):
    """a_i where the members of its group differ, else 0; a group of one is rejected.

    First in the chain: raw rewards but for prompts that are all right or all wrong, Reinforce-Rej (arXiv
    2504.11343). Evidence: code (RLHFlow/Minimal-RL).
    """

    use = "reject"

    def __call__(self, a_R: Doubles, scored: Scored, store: PromptStore) -> Doubles:
        return np.where(differs(a_R, scored.group_R), a_R, 0.0)
