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
from g2rpo_fast.rewards.calls import Call, calls_of
from g2rpo_fast.rewards.error import RewardError
from g2rpo_fast.rewards.isolation import process_state_kept, read_only
from g2rpo_fast.rewards.loading import RewardSet
from g2rpo_fast.rewards.time_limit import Overrun, Watchdog
from g2rpo_fast.types import Doubles, Rewards, Rollout


def score(rewards: RewardSet, rollouts: Sequence[Rollout], known: Rewards | None = None) -> Rewards:
    """Float64 rewards of R rollouts. Raises RewardError at the first failure.

    `known`: of the first rollouts, from an earlier round. Functions are called for those again only where
    they see them beside later ones: in a group that grew, or all together.
    """
    reward_RK = channels_of(rewards, rollouts, known)
    weight_K = np.asarray(rewards.weights, dtype=np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        # Not a matrix product: those add in an order of the processor's.
        total_R = (np.where(np.isnan(reward_RK), 0.0, reward_RK) * weight_K).sum(1)
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


def channels_of(rewards: RewardSet, rollouts: Sequence[Rollout], known: Rewards | None = None) -> Doubles:
    """[R, K]: makes every call, in other processes where there are some, then awaits what async functions
    returned, together."""
    reward_RK = np.full((len(rollouts), len(rewards.channels)), np.nan)
    num_known = 0
    if known is not None:
        num_known = len(known.reward_RK)
        reward_RK[:num_known] = known.reward_RK
    shown = [read_only(rollout) for rollout in rollouts] if rewards.any_own else rollouts
    calls = list(calls_of(rewards.channels, rewards.scopes, rollouts, num_known))
    if rewards.workers is not None:
        away = [call for call in calls if not rewards.waits[call.k]]
        limits_s = [rewards.timeout_s if rewards.own[call.k] else None for call in away]
        for call, values in zip(away, rewards.workers.values(away, limits_s, rewards.place), strict=True):
            reward_RK[call.rows, call.k] = values
        calls = [call for call in calls if rewards.waits[call.k]]
    pending: list[tuple[Call, Awaitable[Any]]] = []
    with Watchdog(rewards.timeout_s if rewards.any_own else None) as watchdog:
        try:
            for call in calls:
                value = returned(rewards, call, shown, watchdog)
                if inspect.isawaitable(value):
                    pending.append((call, value))
                else:
                    reward_RK[call.rows, call.k] = numbers_of(value, call)
            for (call, _), value in zip(pending, awaited(rewards, pending, watchdog), strict=True):
                reward_RK[call.rows, call.k] = numbers_of(value, call)
        finally:
            for _, value in pending:
                if inspect.iscoroutine(value):
                    value.close()
    return reward_RK


def returned(rewards: RewardSet, call: Call, shown: Sequence[Rollout], watchdog: Watchdog) -> object:
    """What the call returns; `shown`: all rollouts, as functions may see them."""
    function, own = rewards.functions[call.k], rewards.own[call.k]
    arguments = call.arguments(shown)
    try:
        with process_state_kept() if own else nullcontext():
            if not own:
                return function(*arguments)
            name = f"reward {call.channel!r} of prompt {call.rollouts[0].prompt.id}"
            return watchdog.call(name, lambda: function(*arguments))
    except Overrun as error:
        raise call.error(over(watchdog.limit_s)) from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the user's function may raise anything, SystemExit too
        raise call.error(f"{type(error).__name__}: {error}") from error


def awaited(
    rewards: RewardSet, pending: Sequence[tuple[Call, Awaitable[Any]]], watchdog: Watchdog
) -> list[Any]:
    """The results of async functions, in order."""
    if not pending:
        return []
    try:
        with process_state_kept():
            return rewards.awaiter.results(pending, watchdog)
    except Overrun as error:
        raise pending[0][0].error(over(watchdog.limit_s)) from error


def numbers_of(value: Any, call: Call) -> list[float]:
    """One number for each of the call's rollouts. Raises RewardError for anything else."""
    if call.scope == "rollout":
        return [number_of(value, call.rollouts[0], call.channel)]
    listed = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    if not listed and not (isinstance(value, np.ndarray | torch.Tensor) and value.ndim == 1):
        raise call.error(f"wanted a number for each, got {type(value).__name__}")
    values = list(value)
    if len(values) != len(call.rows):
        raise call.error(f"wanted {len(call.rows)} numbers, one for each, got {len(values)}")
    return [
        number_of(number, rollout, call.channel)
        for number, rollout in zip(values, call.rollouts, strict=True)
    ]


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
