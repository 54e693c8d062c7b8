"""Rewards → advantages, as the objective's section asks. Dimension key: R rollouts, K reward channels."""

from __future__ import annotations

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

    Raises:
        ValueError: a reward that is not finite, or shapes that do not fit.
    """
    return group_advantage(
        torch.tensor(reward_RK, dtype=torch.float64),
        torch.tensor(group_R, dtype=torch.int64),
        channel_weight_K=None if channel_weight_K is None else torch.tensor(channel_weight_K),
        scale=config.advantage_scale,
        aggregation=config.advantage_aggregation,
        eps=config.advantage_eps,
    ).numpy()
