"""Rewards → advantages, as the objective's section asks. Dimension key: R rollouts, K reward channels."""

from __future__ import annotations

import numpy as np
import torch
from g2rpo_kernels import group_advantage

from g2rpo_fast.objective.config import ObjectiveConfig
from g2rpo_fast.types import Doubles, Ints, Longs


def advantages_of(
    config: ObjectiveConfig,
    reward_RK: Doubles,
    group_R: Ints | Longs,
    channel_weight_K: Doubles | None = None,
) -> Doubles:
    """[R] float64: one advantage per rollout; guided and unguided members share their group's baseline.

    A NaN is a channel that does not apply to its row: left out of the sum, as in TRL. Where channels are
    standardised each, that is over the rows of the group that have one, and the others' share of it is 0.

    Raises:
        ValueError: a reward that is not finite, or shapes that do not fit.
    """
    if np.isnan(reward_RK).any() and config.advantage_aggregation == "normalize_then_sum":
        return _standardised_with_gaps(config, reward_RK, group_R, channel_weight_K)
    return group_advantage(
        torch.tensor(np.where(np.isnan(reward_RK), 0.0, reward_RK), dtype=torch.float64),
        torch.tensor(group_R, dtype=torch.int64),
        channel_weight_K=None if channel_weight_K is None else torch.tensor(channel_weight_K),
        scale=config.advantage_scale,
        aggregation=config.advantage_aggregation,
        eps=config.advantage_eps,
    ).numpy()


def _standardised_with_gaps(
    config: ObjectiveConfig, reward_RK: Doubles, group_R: Ints | Longs, channel_weight_K: Doubles | None
) -> Doubles:
    """GDPO (arXiv 2601.05242) over the rows that each channel has: S_i = sum_k w_k z_ik, z standardised in
    its group, then S standardised over the batch."""
    num_rows, num_channels = reward_RK.shape
    weight_K = np.ones(num_channels) if channel_weight_K is None else channel_weight_K
    sum_R = np.zeros(num_rows)
    for k in range(num_channels):
        has_R = ~np.isnan(reward_RK[:, k])
        if has_R.any():
            sum_R[has_R] += weight_K[k] * _standardised(config, reward_RK[has_R, k], group_R[has_R])
    return _standardised(config, sum_R, np.zeros(num_rows, np.int64))


def _standardised(config: ObjectiveConfig, value_R: Doubles, group_R: Ints | Longs) -> Doubles:
    """(x - mean of its group) / (std of its group + eps)."""
    return group_advantage(
        torch.tensor(value_R[:, None], dtype=torch.float64),
        torch.tensor(group_R, dtype=torch.int64),
        scale="group",
        eps=config.advantage_eps,
    ).numpy()
