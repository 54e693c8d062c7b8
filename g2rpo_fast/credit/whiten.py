"""Standardisation over the batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np

from g2rpo_fast.bounds import Gt
from g2rpo_fast.credit.groups import deviations, whole
from g2rpo_fast.pieces import Credit, PromptStore, Scored
from g2rpo_fast.types import Doubles


@dataclass(frozen=True, kw_only=True)
class Whiten(Credit):
    """(a_i - mean of the batch) / (std of the batch + eps).

    Over rows, with the sample standard deviation: the last step of GDPO (arXiv 2601.05242) and of TRL's
    RLOOTrainer. Over tokens, where a row counts once for each token it trains: REINFORCE++ (arXiv
    2501.03262, eq. 10); after `center` its version with a baseline.

    Evidence: code (TRL, OpenRLHF; the latter clamps the deviation instead of adding eps).
    """

    use = "whiten"
    over: Literal["rows", "tokens"] = "rows"
    """What the batch's mean and standard deviation are taken over."""
    eps: Annotated[float, Gt(0)] = 1e-4
    """Added to the standard deviation."""

    def __call__(self, a_R: Doubles, scored: Scored, store: PromptStore) -> Doubles:
        count_R = None
        if self.over == "tokens":
            count_R = np.asarray([rollout.loss_mask.sum() for rollout in scored.rollouts], np.float64)
        deviation_R, std_R = deviations(a_R, whole(a_R), count_R)
        return deviation_R / (std_R + self.eps)
