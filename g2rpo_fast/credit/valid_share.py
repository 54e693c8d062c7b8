"""Groups with a signal make up for those without."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from g2rpo_fast.credit.groups import differs
from g2rpo_fast.pieces import Credit, PromptStore, Scored
from g2rpo_fast.types import Doubles


@dataclass(frozen=True, kw_only=True)
class ValidShare(Credit):
    """a_i / (share of the batch's rows that are in groups whose members differ), after `center`.

    GPG (arXiv 2504.02546): alpha = B / (B - M), M of B rows are in groups without a difference. Over tokens,
    where a row counts once for each token it trains: DGPO (arXiv 2601.20614), whose mean then is over the
    tokens of groups with a signal. Without any such group nothing changes.

    Evidence: code (AMAP-ML/GPG, AMAP-ML/MathForge).
    """

    use = "valid_share"
    over: Literal["rows", "tokens"] = "rows"
    """What the share is of."""

    def __call__(self, a_R: Doubles, scored: Scored, store: PromptStore) -> Doubles:
        count_R = np.ones(len(a_R), np.int64)
        if self.over == "tokens":
            count_R = np.asarray([rollout.loss_mask.sum() for rollout in scored.rollouts], np.int64)
        num_valid = int(count_R[differs(a_R, scored.group_R)].sum())
        return a_R * (int(count_R.sum()) / num_valid) if num_valid else a_R
