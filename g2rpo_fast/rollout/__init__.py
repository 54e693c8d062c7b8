"""Sampling completions: engines that answer requests, and the groups made of their answers."""

from g2rpo_fast.rollout.config import RolloutConfig
from g2rpo_fast.rollout.groups import request_seed
from g2rpo_fast.rollout.local import LocalEngine, Prefill

__all__ = ["LocalEngine", "Prefill", "RolloutConfig", "request_seed"]
