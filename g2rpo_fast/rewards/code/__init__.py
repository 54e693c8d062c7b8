"""The reward "code": generated programs, run in a sandbox and judged from outside it."""

from g2rpo_fast.rewards.code.reward import CodeReward

__all__ = ["CodeReward"]
