"""Rollouts to rewards: every channel of every rollout, `total = sum_k weight_k * reward_k`.

Dimension key: R rollouts, K channels.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence

import numpy as np

from g2rpo_fast.rewards.function import RewardFunction
from g2rpo_fast.rewards.loading import RewardSet
from g2rpo_fast.types import Rewards, Rollout

TEXT_HEAD = 200


class RewardError(RuntimeError):
    """A reward function failed on a rollout, or gave no finite number; the cause is chained."""

    def __init__(self, rollout: Rollout, channel: str, problem: str) -> None:
        self.prompt_id = rollout.prompt.id
        self.channel = channel
        self.rollout = rollout
        head = rollout.text[:TEXT_HEAD] + ("..." if len(rollout.text) > TEXT_HEAD else "")
        super().__init__(
            f"reward {channel!r} of prompt {rollout.prompt.id}, member {rollout.member}: {problem}; "
            f"the response begins {head!r}"
        )


def score(rewards: RewardSet, rollouts: Sequence[Rollout]) -> Rewards:
    """Float64 rewards of R rollouts. Raises RewardError at the first failure."""
    reward_RK = np.empty((len(rollouts), len(rewards.channels)), dtype=np.float64)
    for r, rollout in enumerate(rollouts):
        for k, (channel, function) in enumerate(zip(rewards.channels, rewards.functions, strict=True)):
            reward_RK[r, k] = call(function, channel, rollout)
    weight_K = np.asarray(rewards.weights, dtype=np.float64)
    return Rewards(
        channels=rewards.channels,
        reward_RK=reward_RK,
        weight_K=weight_K,
        total_R=reward_RK @ weight_K,
        accuracy_R=reward_RK[:, rewards.accuracy_index].copy(),
    )


def call(function: RewardFunction, channel: str, rollout: Rollout) -> float:
    """One channel of one rollout."""
    try:
        value = function(rollout.text, rollout.prompt.answer, rollout)
    except KeyboardInterrupt:  # Ctrl-C is no failure of the function
        raise
    except BaseException as error:  # the user's function may raise anything, and call sys.exit
        raise RewardError(rollout, channel, f"{type(error).__name__}: {error}") from error
    if not isinstance(value, numbers.Real | np.bool_):
        raise RewardError(rollout, channel, f"wanted a number, got {type(value).__name__}")
    if not math.isfinite(value):
        raise RewardError(rollout, channel, f"wanted a finite number, got {value}")
    return float(value)
