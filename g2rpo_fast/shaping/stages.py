"""Channels that open one after the other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from g2rpo_fast.pieces import Scored, Shaping
from g2rpo_fast.types import Rewards


@dataclass(frozen=True, kw_only=True)
class Stages(Shaping):
    """R_i,k becomes R_i,k where each channel before it, in the order of reward.functions, paid row i more
    than 0, else 0; one that does not apply to the row holds nothing up.

    The stages of PRS (arXiv 2512.07478). Evidence: approx (weights and thresholds were not seen).
    """

    use = "stages"

    def __call__(self, scored: Scored) -> Rewards:
        rewards = scored.rewards
        open_R = np.ones(len(scored.rollouts), np.bool_)
        for name in rewards.channels:
            reward_R = rewards.channel(name)
            applies_R = ~np.isnan(reward_R)
            rewards = rewards.changed(name, np.where(applies_R & ~open_R, 0.0, reward_R))
            open_R &= ~applies_R | (reward_R > 0)
        return rewards
