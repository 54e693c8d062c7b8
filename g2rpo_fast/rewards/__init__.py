"""Rewards stage: rollouts to named reward channels and their weighted sum."""

from g2rpo_fast.rewards.config import RewardConfig
from g2rpo_fast.rewards.error import RewardError
from g2rpo_fast.rewards.function import RewardFunction

__all__ = ["RewardConfig", "RewardError", "RewardFunction"]
