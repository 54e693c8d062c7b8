"""Division by the batch's standard deviation of rewards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from g2rpo_fast.bounds import Gt
from g2rpo_fast.credit.groups import deviations, whole
from g2rpo_fast.pieces import Credit, PromptStore, Scored
from g2rpo_fast.types import Doubles


@dataclass(frozen=True, kw_only=True)
class BatchStd(Credit):
    """a_i / (std of all total rewards of the batch + eps), with the sample standard deviation.

    Lite PPO (arXiv 2508.08221), after `center`: the deviation is that of the rewards, not of the advantages
    (`whiten` has that).

    Evidence: code (TRL's scale_rewards = "batch").
    """

    use = "batch_std"
    eps: Annotated[float, Gt(0)] = 1e-4
    """Added to the standard deviation."""

    def __call__(self, a_R: Doubles, scored: Scored, store: PromptStore) -> Doubles:
        total_R = scored.rewards.total_R
        return a_R / (deviations(total_R, whole(total_R))[1] + self.eps)
