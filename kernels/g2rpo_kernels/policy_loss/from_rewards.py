"""Edges of whole rollouts from their rewards: one member per token, advantages within groups.

Dimension key: T trained tokens, R rollouts, K reward channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from g2rpo_kernels.checks import check_tensors
from g2rpo_kernels.group_advantage import check_rewards, group_advantage
from g2rpo_kernels.logprob.checks import check_index
from g2rpo_kernels.policy_loss.records import Edges


@dataclass(frozen=True, kw_only=True)
class Rewards:
    """Rewards of rollouts in groups, and the rollout of each trained token.

    Two groups of two rollouts with 3, 1, 1 and 2 tokens: reward_RK [[1], [0], [1], [1]],
    group_R [0, 0, 1, 1], row_T [0, 0, 0, 1, 2, 3, 3].
    """

    reward_RK: Tensor
    """[R, K] floating, finite."""
    group_R: Tensor
    """[R] integers, any values in any order; rollouts with the same value are a group."""
    row_T: Tensor
    """[T] int64 or int32 in [0, R)."""
    channel_weight_K: Tensor | None = None
    """[K]; None = ones."""
    scale: Literal["group", "none", "batch"] = "group"
    """As in `group_advantage`; rewards are summed over channels first."""
    eps: float = 1e-4

    def check(self) -> None:
        """Raise ValueError for what `group_advantage` refuses, or a token of no rollout."""
        check_rewards(
            self.reward_RK, self.group_R, self.channel_weight_K, self.scale, "sum_then_normalize", self.eps
        )
        check_tensors({"row_T": self.row_T})
        check_index("row_T", self.row_T, len(self.reward_RK))


def edges_from_rewards(
    rewards: Rewards,
    weight_T: Tensor,
    old_logp_T: Tensor | None,
    ref_logp_T: Tensor | None,
    rollout_logp_T: Tensor | None,
) -> Edges:
    """A token's advantage is its rollout's; each token is an edge with one member."""
    advantage_R = group_advantage(
        rewards.reward_RK,
        rewards.group_R,
        channel_weight_K=rewards.channel_weight_K,
        scale=rewards.scale,
        eps=rewards.eps,
    )
    row_T = rewards.row_T.long()
    advantage_T = advantage_R[row_T]
    return Edges(
        a_pos_T=weight_T * advantage_T.clamp(min=0),
        a_neg_T=weight_T * advantage_T.clamp(max=0),
        weight_T=weight_T,
        old_logp_T=old_logp_T,
        ref_logp_T=ref_logp_T,
        rollout_logp_T=rollout_logp_T,
        member_ptr_T1=torch.arange(len(row_T) + 1, device=row_T.device),
        member_row_M=row_T,
        member_advantage_M=advantage_T,
        member_weight_M=weight_T,
        num_rows=len(advantage_R),
    )
