"""What the ops refuse: an error names the argument as the caller wrote it, what was wanted and what came."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from g2rpo_kernels import (
    Objective,
    edge_coefficients,
    group_advantage,
    linear_logprob,
    linear_policy_loss,
    logprob,
    policy_loss,
    policy_loss_of_logps,
    token_loss,
    tree_attention,
)
from torch import Tensor

from op_arguments import (
    FLAT_IDS,
    GOOD,
    INF,
    NAN,
    OPTIONAL,
    ROWS,
    D,
    T,
    V,
    edges,
    from_rewards,
    members,
    spoilt,
)

TENSORS = [
    (op, name)
    for op, given in GOOD.items()
    for name, value in (given | OPTIONAL.get(op, {})).items()
    if isinstance(value, Tensor)
]
OPS = [pytest.param(op, id=op.__name__) for op in GOOD]


@pytest.mark.parametrize("op", OPS)
def test_good_arguments_pass(op: Callable[..., Any]) -> None:
    op(**GOOD[op])
    op(**GOOD[op], **OPTIONAL.get(op, {}))


@pytest.mark.parametrize(("op", "name"), TENSORS, ids=[f"{op.__name__}-{name}" for op, name in TENSORS])
def test_what_is_no_tensor_with_values_is_refused_by_name(op: Callable[..., Any], name: str) -> None:
    given = GOOD[op] | OPTIONAL.get(op, {})
    with pytest.raises(
        ValueError, match=f"^{name}: wanted a tensor with values, got one on the device meta$"
    ):
        op(**given | {name: given[name].to("meta")})
    if name != "num_items_in_batch":
        with pytest.raises(ValueError, match=f"^{name}: wanted a tensor, got list$"):
            op(**given | {name: given[name].tolist()})


@pytest.mark.parametrize("name", ["a_pos_T", "old_logp_T", "member_row_M"])
def test_edges_without_values_are_refused_by_name(name: str) -> None:
    given = members(old_logp_T=-torch.ones(T))
    given = given._replace(**{name: getattr(given, name).to("meta")})
    for op in (policy_loss, linear_policy_loss, policy_loss_of_logps):
        with pytest.raises(ValueError, match=rf"^edges\.{name}: wanted a tensor with values"):
            op(**GOOD[op] | {"edges": given, "objective": Objective(ratio="sequence")})


WRONG: list[tuple[Callable[..., Any], dict[str, Any], str]] = [
    (logprob, {"logits_TV": torch.zeros(T)}, r"logits_TV: wanted \[T, V\] floating, got \[6\]"),
    (logprob, {"target_T": FLAT_IDS.float()}, "target_T: wanted a vector of int64 or int32"),
    (linear_logprob, {"bias_V": torch.ones(V).long()}, "bias_V: wanted a floating dtype, got torch.int64"),
    (
        linear_logprob,
        {"hidden_SD": torch.ones(T, D).int()},
        "hidden_SD: wanted a floating dtype, got torch.int32",
    ),
    (linear_logprob, {"head_VD": torch.ones(V, D + 1)}, r"hidden_SD, head_VD: wanted \[S, D\] and \[V, D\]"),
    (linear_logprob, {"source_T": torch.full((T,), T)}, r"source_T: wanted values in \[0, 6\), got 6..6"),
    (
        policy_loss,
        {"edges": edges(a_pos_T=spoilt(torch.ones(T), NAN, (4,)))},
        r"edges\.a_pos_T: wanted finite, got nan at 4",
    ),
    (
        linear_policy_loss,
        {"edges": edges(a_neg_T=spoilt(torch.ones(T), INF, (4,)))},
        r"edges\.a_neg_T: wanted finite, got inf at 4",
    ),
    (
        policy_loss_of_logps,
        {
            "edges": members(member_weight_M=spoilt(torch.ones(T), NAN, (4,))),
            "objective": Objective(ratio="sequence"),
        },
        r"edges\.member_weight_M: wanted finite, got nan at 4",
    ),
    (
        policy_loss_of_logps,
        {"edges": edges(weight_T=torch.ones(T).int())},
        r"edges\.weight_T: wanted \[6\] floating, got \[6\] torch.int32",
    ),
    (
        policy_loss_of_logps,
        {"edges": members(member_row_M=torch.ones(T)), "objective": Objective(ratio="sequence")},
        r"edges\.member_row_M: wanted integers, got torch.float32",
    ),
    (
        policy_loss_of_logps,
        {"logp_T": torch.ones(T).int()},
        "logp_T: wanted a floating dtype, got torch.int32",
    ),
    (token_loss, {"loss": 3.0}, "loss: wanted a function of logp_T and entropy_T, got float"),
    (from_rewards, {"row_T": ROWS + 1}, r"row_T: wanted values in \[0, 2\), got 1..2"),
    (
        from_rewards,
        {"reward_RK": torch.tensor([[1.0], [INF]])},
        "reward_RK: wanted finite, got inf at row 1, channel 0",
    ),
    (from_rewards, {"weight_T": torch.ones(T + 1)}, r"weight_T: wanted \[6\] floating, got \[7\]"),
    (from_rewards, {"weight_T": spoilt(torch.ones(T), NAN, (4,))}, "weight_T: wanted finite"),
    (from_rewards, {"objective": Objective(kl_coef=0.1)}, "ref_logp_T: wanted with kl_coef=0.1, got None"),
    (from_rewards, {"old_logp_T": torch.ones(T + 1)}, r"old_logp_T: wanted \[6\] floating, got \[7\]"),
    (
        group_advantage,
        {"channel_weight_K": torch.tensor([NAN])},
        r"channel_weight_K: wanted finite, got \[nan\]",
    ),
    (group_advantage, {"eps": INF}, "eps: wanted > 0 and finite, got inf"),
    (
        edge_coefficients,
        {"weight_M": torch.ones(2)},
        r"advantage_M, weight_M: wanted member_ptr_T1\[-1\] entries",
    ),
    (tree_attention, {"scale": NAN}, "scale: wanted a finite number, got nan"),
    (tree_attention, {"softcap": 0.0}, "softcap: wanted > 0 or None, got 0.0"),
    (tree_attention, {"window": 0, "position_S": torch.arange(3)}, "window: wanted >= 1 or None, got 0"),
    (tree_attention, {"q_SHE": torch.ones(3, 2, 8).int()}, "q_SHE: wanted a floating dtype, got torch.int32"),
    (tree_attention, {"k_SKE": torch.ones(3, 2, 4)}, r"q_SHE, k_SKE, v_SKE: wanted \[S, H, E\]"),
    (tree_attention, {"end_S": torch.ones(3)}, r"end_S: wanted integers \[3\], got torch.float32 \[3\]"),
]


@pytest.mark.parametrize(("op", "change", "message"), WRONG, ids=[f"{op.__name__}-{m}" for op, _, m in WRONG])
def test_wrong_arguments_are_named(op: Callable[..., Any], change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}") as refused:
        op(**GOOD[op] | change)
    assert "\n" not in str(refused.value)
