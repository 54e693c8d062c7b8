"""Rollouts to rewards: every channel of every rollout, `total = sum_k weight_k * reward_k`.

A channel that does not apply to a row (its function returned None) is NaN and left out of the sum.

Dimension key: R rollouts, K channels.
"""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Awaitable, Sequence
from contextlib import nullcontext
from decimal import Decimal
from typing import Any

import numpy as np
import torch

from g2rpo_fast.rewards.awaiting import over
from g2rpo_fast.rewards.error import RewardError
from g2rpo_fast.rewards.isolation import process_state_kept, read_only
from g2rpo_fast.rewards.loading import RewardSet
from g2rpo_fast.rewards.time_limit import Overrun, Watchdog
from g2rpo_fast.types import Doubles, Rewards, Rollout


def score(rewards: RewardSet, rollouts: Sequence[Rollout]) -> Rewards:
    """Float64 rewards of R rollouts. Raises RewardError at the first failure."""
    reward_RK = channels_of(rewards, rollouts)
    weight_K = np.asarray(rewards.weights, dtype=np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        total_R = np.where(np.isnan(reward_RK), 0.0, reward_RK) @ weight_K
    for rollout, total in zip(rollouts, total_R, strict=True):
        if not math.isfinite(total):
            raise RewardError(rollout, " + ".join(rewards.channels), f"wanted a finite sum, got {total}")
    judged_R = reward_RK[:, rewards.accuracy_index]
    return Rewards(
        channels=rewards.channels,
        reward_RK=reward_RK,
        weight_K=weight_K,
        total_R=total_R,
        accuracy_R=np.where(np.isnan(judged_R), np.nan, judged_R > rewards.success),
    )


def channels_of(rewards: RewardSet, rollouts: Sequence[Rollout]) -> Doubles:
    """[R, K]: calls every function on every rollout, then awaits what async functions returned, together."""
    reward_RK = np.full((len(rollouts), len(rewards.channels)), np.nan)
    pending: list[tuple[int, int, Awaitable[Any]]] = []
    with Watchdog(rewards.timeout_s if rewards.any_own else None) as watchdog:
        try:
            for r, rollout in enumerate(rollouts):
                shown = read_only(rollout) if rewards.any_own else rollout
                for k, channel in enumerate(rewards.channels):
                    value = call(rewards, k, rollout, shown, watchdog)
                    if inspect.isawaitable(value):
                        pending.append((r, k, value))
                    else:
                        reward_RK[r, k] = number_of(value, rollout, channel)
            for (r, k, _), value in zip(pending, awaited(rewards, rollouts, pending, watchdog), strict=True):
                reward_RK[r, k] = number_of(value, rollouts[r], rewards.channels[k])
        finally:
            for _, _, value in pending:
                if inspect.iscoroutine(value):
                    value.close()
    return reward_RK


def call(rewards: RewardSet, k: int, rollout: Rollout, shown: Rollout, watchdog: Watchdog) -> object:
    """What channel k's function returns for `shown`, the rollout as it may see it."""
    channel, function, own = rewards.channels[k], rewards.functions[k], rewards.own[k]
    try:
        with process_state_kept() if own else nullcontext():
            if not own:
                return function(rollout.text, rollout.prompt.answer, rollout)
            name = f"reward {channel!r} of prompt {rollout.prompt.id}"
            return watchdog.call(name, lambda: function(shown.text, shown.prompt.answer, shown))
    except Overrun as error:
        raise RewardError(rollout, channel, over(watchdog.limit_s)) from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the user's function may raise anything, SystemExit too
        raise RewardError(rollout, channel, f"{type(error).__name__}: {error}") from error


def awaited(
    rewards: RewardSet,
    rollouts: Sequence[Rollout],
    pending: Sequence[tuple[int, int, Awaitable[Any]]],
    watchdog: Watchdog,
) -> list[Any]:
    """The results of async functions, in order."""
    if not pending:
        return []
    calls = [(rollouts[r], rewards.channels[k], value) for r, k, value in pending]
    try:
        with process_state_kept():
            return rewards.awaiter.results(calls, watchdog)
    except Overrun as error:
        raise RewardError(*calls[0][:2], over(watchdog.limit_s)) from error


def number_of(value: object, rollout: Rollout, channel: str) -> float:
    """Any real number, also of NumPy, PyTorch (one element, no dimension) or `decimal`; NaN for None.

    Raises RewardError for anything else, and for a number that is not finite or too large for a float.
    """
    if value is None:
        return math.nan
    if isinstance(value, np.ndarray | torch.Tensor) and value.ndim == 0:
        value = value.item()
    if not isinstance(value, numbers.Real | np.bool_ | Decimal):
        raise RewardError(rollout, channel, f"wanted a number, got {type(value).__name__}")
    try:
        number = float(value)
    except (OverflowError, ValueError) as error:  # ValueError: a signalling NaN of decimal
        raise RewardError(rollout, channel, f"wanted a number that a float can hold: {error}") from error
    if not math.isfinite(number):
        raise RewardError(rollout, channel, f"wanted a finite number, got {value}")
    return number
