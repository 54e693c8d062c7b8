"""Sampling completions: engines that answer requests, and the groups made of their answers."""

from g2rpo_fast.rollout.config import RolloutConfig
from g2rpo_fast.rollout.groups import request_seed

__all__ = ["RolloutConfig", "request_seed"]
