"""What a step's rollouts say, guided and unguided apart."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from g2rpo_fast.metrics import applicable_mean
from g2rpo_fast.pieces import Scored
from g2rpo_fast.types import Bools, Doubles, Rewards, Rollout


def rollout_metrics(scored: Scored, settled: Scored, advantage_R: Doubles) -> dict[str, float]:
    """Means over all rollouts of the step; NaN where a split is empty. A channel's is over the rows that it
    applies to.

    "zero_signal" is the share of groups, of those settled on, whose advantages are all zero: they teach
    nothing this step. "rows" are the rollouts sampled, "trained_rows" those settled on. "nll" is the mean
    -log p of the sampled tokens under the sampling distribution: an estimate of its entropy.
    """
    rollouts, rewards = scored.rollouts, scored.rewards
    guided_R = np.asarray([r.guided for r in rollouts])
    everyone = np.ones(len(rollouts), dtype=np.bool_)
    metrics = {
        f"reward/{channel}": applicable_mean(rewards.reward_RK[:, k])
        for k, channel in enumerate(rewards.channels)
    }
    for name, chosen in (("", everyone), ("guided/", guided_R), ("unguided/", ~guided_R)):
        metrics |= {f"rollout/{name}{k}": v for k, v in _split(rollouts, rewards, chosen).items()}
    group_R = settled.group_R
    silent = [not advantage_R[group_R == g].any() for g in np.unique(group_R)]
    metrics["rollout/zero_signal"] = float(np.mean(silent)) if silent else math.nan
    metrics["rollout/rows"] = float(len(rollouts))
    metrics["rollout/trained_rows"] = float(len(settled.rollouts))
    metrics["rollout/guidance_tokens"] = float(sum(r.guidance_len for r in rollouts))
    metrics["rollout/sampled_tokens"] = float(sum(r.sampled_len for r in rollouts))
    return metrics


def shaping_metrics(paid: Rewards, shaped: Rewards) -> dict[str, float]:
    """What shaping made of the rewards paid: the mean sum, and those of the channels that it added."""
    added = [channel for channel in shaped.channels if channel not in paid.channels]
    metrics = {f"reward/{channel}": applicable_mean(shaped.channel(channel)) for channel in added}
    return {**metrics, "reward/shaped": _mean(shaped.total_R)}


def staleness_metrics(rollouts: Sequence[Rollout], version: int) -> dict[str, float]:
    """Updates between the weights that drew each sampled token and `version`, those that the update starts
    from: mean and largest over tokens; NaN where there are none."""
    versions = [
        np.full(r.sampled_len, r.weight_version) if r.token_versions is None else r.token_versions
        for r in rollouts
    ]
    lag = version - np.concatenate([np.zeros(0, np.int32), *versions])
    return {
        "rollout/staleness": _mean(lag),
        "rollout/staleness_max": float(lag.max()) if len(lag) else math.nan,
    }


def _split(rollouts: Sequence[Rollout], rewards: Rewards, chosen: Bools) -> dict[str, float]:
    part = [r for r, c in zip(rollouts, chosen, strict=True) if c]
    sampled = np.concatenate([r.rollout_logp[r.guidance_len :] for r in part]) if part else np.zeros(0)
    return {
        "reward": _mean(rewards.total_R[chosen]),
        "reward_std": float(rewards.total_R[chosen].std()) if part else math.nan,
        "accuracy": applicable_mean(rewards.accuracy_R[chosen]),
        "length": _mean(np.asarray([r.sampled_len for r in part])),
        "finished": _mean(np.asarray([r.finish_reason == "stop" for r in part])),
        "nll": -_mean(sampled),
        "share": float(np.mean(chosen)),
    }


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else math.nan
