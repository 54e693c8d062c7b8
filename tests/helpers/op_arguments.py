"""Good arguments of every op of the kernels package, small; and how to spoil one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from g2rpo_kernels import (
    Edges,
    FusedLinearGRPOLoss,
    Objective,
    Rewards,
    edge_coefficients,
    group_advantage,
    grpo_loss,
    grpo_loss_of_logps,
    linear_logprob,
    linear_policy_loss,
    logprob,
    policy_loss,
    policy_loss_from_rewards,
    policy_loss_of_logps,
    token_logprobs,
    token_loss,
    tree_attention,
)
from torch import Tensor

B, L, D, V, T = 2, 3, 4, 7, 6
IDS = torch.zeros(B, L, dtype=torch.int64)
FLAT_IDS = torch.arange(T)
ROWS = torch.tensor([0, 0, 0, 1, 1, 1])
OLD = torch.full((B, L), -1.0)


def edges(**changed: Any) -> Edges:
    return Edges(torch.ones(T), -torch.ones(T), torch.ones(T))._replace(**changed)


def members(**changed: Any) -> Edges:
    own = {"member_ptr_T1": torch.arange(T + 1), "member_row_M": ROWS, "num_rows": 2}
    return edges(**own, member_advantage_M=torch.ones(T), member_weight_M=torch.ones(T))._replace(**changed)


def fused(*, settings: dict[str, Any] | None = None, **given: Any) -> Any:
    of: dict[str, Any] = {"use_ref_model": False} | (settings or {})
    return FusedLinearGRPOLoss(**of)(**given)


def from_rewards(*, reward_RK: Tensor, group_R: Tensor, row_T: Tensor, **given: Any) -> Any:
    rewards = Rewards(reward_RK=reward_RK, group_R=group_R, row_T=row_T)
    return policy_loss_from_rewards(rewards=rewards, **given)


LINEAR = {"hidden_SD": torch.ones(T, D), "head_VD": torch.ones(V, D), "target_T": FLAT_IDS}
LOGITS = {"logits_TV": torch.zeros(T, V), "target_T": FLAT_IDS}
GOOD: dict[Callable[..., Any], dict[str, Any]] = {
    fused: {
        "_input": torch.ones(B, L, D), "lin_weight": torch.ones(V, D), "selected_token_ids": IDS,
        "attention_mask": torch.ones(B, L), "advantages": torch.ones(B),
    },
    grpo_loss: {
        "logits": torch.zeros(B, L, V), "completion_ids": IDS, "mask": torch.ones(B, L),
        "advantages": torch.ones(B),
    },
    grpo_loss_of_logps: {"logps": OLD, "mask": torch.ones(B, L), "advantages": torch.ones(B)},
    token_logprobs: {"logits": torch.zeros(B, L, V), "ids": IDS},
    logprob: LOGITS,
    linear_logprob: LINEAR,
    policy_loss: {**LOGITS, "edges": edges(), "objective": Objective()},
    linear_policy_loss: {**LINEAR, "edges": edges(), "objective": Objective()},
    policy_loss_of_logps: {"logp_T": -torch.ones(T), "edges": edges(), "objective": Objective()},
    token_loss: {**LINEAR, "loss": lambda logp_T, entropy_T: logp_T.sum()},
    from_rewards: {
        **LOGITS, "reward_RK": torch.ones(B, 1), "group_R": torch.zeros(B, dtype=torch.int64), "row_T": ROWS,
        "weight_T": torch.ones(T), "objective": Objective(),
    },
    group_advantage: {"reward_RK": torch.ones(B, 1), "group_R": torch.zeros(B, dtype=torch.int64)},
    edge_coefficients: {
        "advantage_M": torch.ones(3), "weight_M": torch.ones(3), "member_ptr_T1": torch.tensor([0, 1, 3]),
    },
    tree_attention: {
        "q_SHE": torch.ones(3, 2, 8), "k_SKE": torch.ones(3, 1, 8), "v_SKE": torch.ones(3, 1, 8),
        "end_S": torch.full((3,), 3), "scale": 1.0,
    },
}  # fmt: skip
OPTIONAL: dict[Callable[..., Any], dict[str, Tensor]] = {
    fused: {
        "bias": torch.zeros(V), "old_per_token_logps": OLD, "vllm_is_ratio": torch.ones(B, L),
        "num_items_in_batch": torch.tensor(6),
    },
    grpo_loss: {
        "old_logp": OLD, "importance_ratio": torch.ones(B, L), "num_items_in_batch": torch.tensor(6),
    },
    grpo_loss_of_logps: {
        "entropies": torch.ones(B, L), "old_logp": OLD, "importance_ratio": torch.ones(B),
        "num_items_in_batch": torch.tensor(6),
    },
    token_logprobs: {"row_mask": torch.ones(B, L)},
    linear_logprob: {"source_T": torch.arange(T), "bias_V": torch.zeros(V)},
    linear_policy_loss: {"source_T": torch.arange(T), "bias_V": torch.zeros(V)},
    token_loss: {"source_T": torch.arange(T), "bias_V": torch.zeros(V)},
    policy_loss_of_logps: {"entropy_T": torch.ones(T)},
    group_advantage: {"channel_weight_K": torch.ones(1)},
    tree_attention: {"position_S": torch.arange(3)},
}  # fmt: skip

NAN, INF = float("nan"), float("inf")


def spoilt(value: Tensor, bad: float, at: tuple[int, ...] = (1, 2)) -> Tensor:
    value = value.clone()
    value[at] = bad
    return value
