"""Rewards stage: rollouts to named reward channels and their weighted sum."""

from g2rpo_fast.rewards.config import RewardConfig
from g2rpo_fast.rewards.error import RewardError
from g2rpo_fast.rewards.function import RewardFunction
from g2rpo_fast.rewards.loading import RewardSet, load_rewards
from g2rpo_fast.rewards.scoring import score

__all__ = ["RewardConfig", "RewardError", "RewardFunction", "RewardSet", "load_rewards", "score"]
