"""Advantages of ragged groups, and their sums over the members of shared edges.

    group  A_i = (R_i - mean_g R) / (std_g R + eps)         GRPO, arXiv 2402.03300
    none   A_i =  R_i - mean_g R                            Dr. GRPO, arXiv 2503.20783
    batch  A_i = (R_i - mean_g R) / (std_batch R + eps)     Lite PPO, arXiv 2508.08221

R = sum_k w_k r_k. `normalize_then_sum` (GDPO, arXiv 2601.05242): S_i = sum_k w_k (r_ik - mean_g r_k) /
(std_g r_k + eps), A_i = (S_i - mean_batch S) / (std_batch S + eps). std has n - 1; that of one value is 0.

`reference_op` is an operator of `torch.library`: how many groups there are is data.

Dimension key: R rollouts, K reward channels, T trained edges, M (edge, member) pairs. Q groups.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

TIE = 64 * torch.finfo(torch.float64).eps
"""A group whose rewards differ by less, relatively, differs by rounding: its deviations are exactly 0."""


def deviations(value_R: Tensor, group_R: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """([R] value minus group mean, [Q] group standard deviation). Ties are exactly 0."""

    def extreme(values_R: Tensor, reduce: str) -> Tensor:
        start_Q = values_R.new_zeros(num_groups)
        return start_Q.scatter_reduce(0, group_R, values_R, reduce, include_self=False)

    def total(values_R: Tensor) -> Tensor:
        return values_R.new_zeros(num_groups).index_add(0, group_R, values_R)

    low_Q, high_Q = extreme(value_R, "amin"), extreme(value_R, "amax")
    # An infinite reward is no tie: infinitely far apart is more than any bound.
    bound_Q = (TIE * torch.maximum(low_Q.abs(), high_Q.abs())).clamp(max=torch.finfo(low_Q.dtype).max)
    tied_Q = high_Q - low_Q <= bound_Q
    # From the group's minimum: equal rewards give exact zeros, and a common offset costs no digits.
    above_R = (value_R - low_Q[group_R]).masked_fill(tied_Q[group_R], 0.0)
    count_Q = total(torch.ones_like(value_R))
    deviation_R = above_R - (total(above_R) / count_Q)[group_R]
    variance_Q = total(deviation_R.square()) / (count_Q - 1).clamp(min=1)
    return deviation_R, variance_Q.sqrt()


def _standardised(value_R: Tensor, group_R: Tensor, num_groups: int, eps: float) -> Tensor:
    deviation_R, std_Q = deviations(value_R, group_R, num_groups)
    return deviation_R / (std_Q[group_R] + eps)


def sum_then_normalize(
    reward_RK: Tensor, group_R: Tensor, num_groups: int, weight_K: Tensor, scale: str, eps: float
) -> Tensor:
    total_R = (reward_RK * weight_K).sum(1)
    if scale == "group":
        return _standardised(total_R, group_R, num_groups, eps)
    deviation_R, _ = deviations(total_R, group_R, num_groups)
    if scale == "none":
        return deviation_R
    _, std_1 = deviations(total_R, torch.zeros_like(group_R), 1)
    return deviation_R / (std_1 + eps)


def normalize_then_sum(
    reward_RK: Tensor, group_R: Tensor, num_groups: int, weight_K: Tensor, scale: str, eps: float
) -> Tensor:
    channels = [_standardised(reward_R, group_R, num_groups, eps) for reward_R in reward_RK.unbind(1)]
    summed_R = (torch.stack(channels, 1) * weight_K).sum(1)
    return _standardised(summed_R, torch.zeros_like(group_R), 1, eps)


AGGREGATIONS = {"sum_then_normalize": sum_then_normalize, "normalize_then_sum": normalize_then_sum}


@torch.library.custom_op("g2rpo::group_advantage_reference", mutates_args=())
def reference_op(
    reward_RK: Tensor,
    group_R: Tensor,
    channel_weight_K: Tensor | None,
    scale: str,
    aggregation: str,
    eps: float,
) -> Tensor:
    """[R] float64; group ids in any order."""
    reward_RK = reward_RK.double()
    groups_Q, group_R = torch.unique(group_R, return_inverse=True)
    if not len(group_R):
        return reward_RK.new_zeros(0)
    weight_K = reward_RK.new_ones(reward_RK.shape[1]) if channel_weight_K is None else channel_weight_K
    weight_K = weight_K.to(reward_RK)
    return AGGREGATIONS[aggregation](reward_RK, group_R, len(groups_Q), weight_K, scale, eps)


@reference_op.register_fake
def _(reward_RK: Tensor, *_: Any) -> Tensor:
    return reward_RK.new_empty(reward_RK.shape[0], dtype=torch.float64)


def edge_coefficients_reference(
    advantage_M: Tensor, weight_M: Tensor, member_ptr_T1: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    edge_M = torch.repeat_interleave(member_ptr_T1.diff(), output_size=len(weight_M))
    zeros_T = weight_M.new_zeros(len(member_ptr_T1) - 1)

    def total(value_M: Tensor) -> Tensor:
        return zeros_T.index_add(0, edge_M, value_M)

    return (
        total(weight_M * advantage_M.clamp(min=0)),
        total(weight_M * advantage_M.clamp(max=0)),
        total(weight_M),
    )
