"""What a prompt's tracker expected as baseline."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from g2rpo_fast.own import PieceError
from g2rpo_fast.pieces import Credit, PromptStore, Scored
from g2rpo_fast.types import Doubles


@dataclass(frozen=True, kw_only=True)
class TrackerBaseline(Credit):
    """a_i - v of its prompt, v = a / (a + b) before this step's rewards, which the selection `tracker` keeps.

    SPO, single-stream (arXiv 2509.13232), before `whiten`. Evidence: code. Rewards are in [0, 1].
    """

    use = "tracker_baseline"
    reads = frozenset({"tracked_right", "tracked_wrong"})

    def __call__(self, a_R: Doubles, scored: Scored, store: PromptStore) -> Doubles:
        total_R = scored.rewards.total_R
        outside = np.flatnonzero((total_R < 0) | (total_R > 1))
        if len(outside):
            raise PieceError(
                f"{self.section}.{self.use}: wanted rewards in [0, 1], of all channels together, got "
                f"{total_R[outside[0]]:g}"
            )
        places = store.places([rollout.prompt for rollout in scored.rollouts])
        right_R, wrong_R = (store.columns[name][places] for name in ("tracked_right", "tracked_wrong"))
        return a_R - right_R / (right_R + wrong_R)
