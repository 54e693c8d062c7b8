"""Rewards that look at the text only."""

from __future__ import annotations

import re

from g2rpo_fast.rewards.config import RewardConfig
from g2rpo_fast.rewards.function import RewardFunction
from g2rpo_fast.types import Rollout


def exact_match(config: RewardConfig) -> RewardFunction:
    """1 when the response ended by itself and the text after its last marker is the answer, whitespace around
    both aside; else 0. A response that was cut off has no final answer."""

    def reward(response: str, answer: str, rollout: Rollout) -> float:
        _, marker, final = response.rpartition(config.answer_marker)
        ended = rollout.finish_reason == "stop"
        return float(ended and bool(marker) and final.strip() == answer.strip())

    return reward


def format_match(config: RewardConfig) -> RewardFunction:
    """1 when the whole response matches `format_pattern`, else 0."""
    pattern = re.compile(config.format_pattern, re.DOTALL)

    def reward(response: str, answer: str, rollout: Rollout) -> float:
        return float(pattern.fullmatch(response) is not None)

    return reward
