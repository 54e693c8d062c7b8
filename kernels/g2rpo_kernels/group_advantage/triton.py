"""`group_advantage` and `edge_coefficients` on Triton: one or two launches, nothing sorted or synchronised.

One program per rollout; one program per block of edges, whose members are added in their order. The launchers
are operators of `torch.library`, not differentiable.
Dimension key: R rollouts, K reward channels, T trained edges, M (edge, member) pairs.
"""

# pyright: reportGeneralTypeIssues=false, reportInvalidTypeForm=false

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from g2rpo_kernels.group_advantage.triton_groups import advantage, inverse, spread
from g2rpo_kernels.logprob.triton_launch import on_device

BLOCK_R = 128
BLOCK_T = 128
OPTIONS: dict[str, Any] = {"num_warps": 4, "enable_fp_fusion": False}


@triton.jit
def advantage_kernel(
    reward_ptr,
    channel_weight_ptr,
    group_ptr,
    out_ptr,
    num_r,
    num_k,
    stride_r,
    stride_k,
    eps: tl.float64,
    SCALE: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    r = tl.program_id(0)
    out = advantage(
        reward_ptr, channel_weight_ptr, group_ptr, r, num_r, num_k, stride_r, stride_k, eps, SCALE, BLOCK_R
    )
    tl.store(out_ptr + r, out)


@triton.jit
def standardised_sum_kernel(
    reward_ptr,
    channel_weight_ptr,
    group_ptr,
    out_ptr,
    num_r,
    num_k,
    stride_r,
    stride_k,
    eps: tl.float64,
    BLOCK_R: tl.constexpr,
):
    """S_r = sum_k w_k (reward - group mean) / (group std + eps), channel by channel (GDPO)."""
    r = tl.program_id(0)
    total = tl.zeros((), tl.float64)
    for k in range(num_k):
        channel_ptr = reward_ptr + k * stride_k
        deviation, std = spread(channel_ptr, None, group_ptr, r, num_r, 1, stride_r, stride_k, False, BLOCK_R)
        weighted = deviation * inverse(std + eps)
        if channel_weight_ptr is not None:
            weighted *= tl.load(channel_weight_ptr + k).to(tl.float64)
        total += weighted
    tl.store(out_ptr + r, total)


@triton.jit
def whole_batch_kernel(value_ptr, group_ptr, out_ptr, num_r, eps: tl.float64, BLOCK_R: tl.constexpr):
    """(value - batch mean) / (batch std + eps)."""
    r = tl.program_id(0)
    deviation, std = spread(value_ptr, None, group_ptr, r, num_r, 1, 1, 1, True, BLOCK_R)
    tl.store(out_ptr + r, deviation * inverse(std + eps))


@triton.jit
def edge_kernel(
    advantage_ptr, weight_ptr, member_ptr, a_pos_ptr, a_neg_ptr, sum_ptr, num_t, BLOCK_T: tl.constexpr
):
    offs_t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    mask_t = offs_t < num_t
    start_t = tl.load(member_ptr + offs_t, mask=mask_t, other=0)
    count_t = tl.load(member_ptr + offs_t + 1, mask=mask_t, other=0) - start_t
    a_pos_t = tl.zeros((BLOCK_T,), tl.float64)
    a_neg_t = tl.zeros((BLOCK_T,), tl.float64)
    sum_t = tl.zeros((BLOCK_T,), tl.float64)
    for m in range(tl.max(count_t, 0)):
        here_t = m < count_t
        weight_t = tl.load(weight_ptr + start_t + m, mask=here_t, other=0.0).to(tl.float64)
        own_t = tl.load(advantage_ptr + start_t + m, mask=here_t, other=0.0).to(tl.float64)
        # Not `tl.maximum` and `tl.minimum`, which make NaN 0.
        a_pos_t += weight_t * tl.where(own_t < 0.0, 0.0, own_t)
        a_neg_t += weight_t * tl.where(own_t > 0.0, 0.0, own_t)
        sum_t += weight_t
    element = sum_ptr.dtype.element_ty
    tl.store(a_pos_ptr + offs_t, a_pos_t.to(element), mask=mask_t)
    tl.store(a_neg_ptr + offs_t, a_neg_t.to(element), mask=mask_t)
    tl.store(sum_ptr + offs_t, sum_t.to(element), mask=mask_t)


@torch.library.custom_op("g2rpo::group_advantage", mutates_args=())
def advantage_op(
    reward_RK: Tensor,
    group_R: Tensor,
    channel_weight_K: Tensor | None,
    scale: str,
    aggregation: str,
    eps: float,
) -> Tensor:
    """As the reference; group ids in any order. R^2 comparisons, so for batches of up to some 10,000."""
    num_rollouts, num_channels = reward_RK.shape
    out_R = torch.empty(num_rollouts, dtype=torch.float64, device=reward_RK.device)
    if not num_rollouts:
        return out_R
    group_R = group_R.contiguous()
    scaled: dict[str, Any] = {"SCALE": scale}
    sweep: dict[str, Any] = {"BLOCK_R": BLOCK_R} | OPTIONS
    shapes: dict[str, Any] = {
        "num_r": num_rollouts,
        "num_k": num_channels,
        "stride_r": reward_RK.stride(0),
        "stride_k": reward_RK.stride(1),
        "eps": eps,
    } | sweep
    grid = (num_rollouts,)
    with on_device(reward_RK):
        if aggregation == "sum_then_normalize":
            advantage_kernel[grid](reward_RK, channel_weight_K, group_R, out_R, **shapes, **scaled)
            return out_R
        sum_R = torch.empty_like(out_R)
        standardised_sum_kernel[grid](reward_RK, channel_weight_K, group_R, sum_R, **shapes)
        whole_batch_kernel[grid](sum_R, group_R, out_R, num_r=num_rollouts, eps=eps, **sweep)
    return out_R


@advantage_op.register_fake
def _(reward_RK: Tensor, *_: Any) -> Tensor:
    return reward_RK.new_empty(reward_RK.shape[0], dtype=torch.float64)


@torch.library.custom_op("g2rpo::edge_coefficients", mutates_args=())
def edge_op(advantage_M: Tensor, weight_M: Tensor, member_ptr_T1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As the reference, summed in float64; results in the weights' dtype."""
    num_edges = len(member_ptr_T1) - 1
    blocks: dict[str, Any] = {"BLOCK_T": BLOCK_T}
    a_pos_T, a_neg_T, weight_T = _empty_edges(weight_M, member_ptr_T1)
    if num_edges:
        with on_device(weight_M):
            edge_kernel[(triton.cdiv(num_edges, BLOCK_T),)](
                advantage_M.contiguous(),
                weight_M.contiguous(),
                member_ptr_T1.contiguous(),
                a_pos_T,
                a_neg_T,
                weight_T,
                num_t=num_edges,
                **blocks,
                **OPTIONS,
            )
    return a_pos_T, a_neg_T, weight_T


@edge_op.register_fake
def _(advantage_M: Tensor, weight_M: Tensor, member_ptr_T1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_edges(weight_M, member_ptr_T1)


def _empty_edges(weight_M: Tensor, member_ptr_T1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    a_pos_T, a_neg_T, weight_T = (weight_M.new_empty(member_ptr_T1.shape[0] - 1) for _ in range(3))
    return a_pos_T, a_neg_T, weight_T
