"""The answer that most of a group give is the right one: rewards without labels."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from g2rpo_fast.pieces import Scored, Shaping
from g2rpo_fast.types import Rewards


@dataclass(frozen=True, kw_only=True)
class Majority(Shaping):
    """R_i = 1 where row i's final answer is its group's most frequent one (of several, the first given), else
    0, also for rows without an answer. In place of what was paid: no reference answer is trained on.

    TTRL's vote, as in SPINE (arXiv 2511.17938). Evidence: notes. A wrong majority teaches the wrong answer.
    """

    use = "majority"
    compares = True

    def __call__(self, scored: Scored) -> Rewards:
        answers, group_R = scored.answers, scored.group_R
        votes: dict[int, Counter[str]] = {}
        for group, answer in zip(group_R.tolist(), answers, strict=True):
            if answer is not None:
                votes.setdefault(group, Counter())[answer] += 1
        winner = {group: counts.most_common(1)[0][0] for group, counts in votes.items()}
        agrees_R = np.asarray(
            [
                float(answer is not None and answer == winner[group])
                for group, answer in zip(group_R.tolist(), answers, strict=True)
            ]
        )
        return scored.rewards.only(self.use, agrees_R)
