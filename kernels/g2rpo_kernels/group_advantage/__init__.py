"""From rewards to advantages, and from advantages to the coefficients of shared edges.

Dimension key: R rollouts, K reward channels, T trained edges, M (edge, member) pairs.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from g2rpo_kernels.checks import check_tensors, readable, shows_nan
from g2rpo_kernels.group_advantage.reference import AGGREGATIONS, edge_coefficients_reference, reference_op
from g2rpo_kernels.logprob.checks import choose_impl

__all__ = ["edge_coefficients", "group_advantage"]

Impl = Literal["reference", "triton"]
Scale = Literal["group", "none", "batch"]
Aggregation = Literal["sum_then_normalize", "normalize_then_sum"]


def group_advantage(
    reward_RK: Tensor,
    group_R: Tensor,
    *,
    channel_weight_K: Tensor | None = None,
    scale: Scale = "group",
    aggregation: Aggregation = "sum_then_normalize",
    eps: float = 1e-4,
    impl: Impl | None = None,
) -> Tensor:
    """Advantage of each rollout over its group's mean, scaled.

    `scale`: `group` divides by the group's standard deviation + eps, `batch` by that of all R totals + eps,
    `none` by nothing. `normalize_then_sum` (GDPO) standardises each channel in its group, then the weighted
    sum over the batch; it takes scale='group' only. Standard deviations have n - 1; that of one value is 0.

    Args:
        reward_RK: [R, K] floating, finite.
        group_R: [R] integers, any values in any order; groups may have any size. A group of one gets
            advantage 0.
        channel_weight_K: [K], None = ones.
        scale, aggregation, eps: above; eps > 0.
        impl: `reference` (numbers the groups by sorting), or `triton` (CUDA: one launch, GDPO two, nothing
            synchronised; R^2 comparisons). Both are operators to `torch.compile`. None = by device.

    Returns:
        [R] float64, not differentiable. A group whose rewards are all equal gets exactly 0 from every mode
        except `normalize_then_sum`, where the batch mean is still subtracted.

    Raises:
        ValueError: shapes or devices that do not fit, a reward or channel weight that is not finite (names
            the row and channel; looked at on the CPU, outside `torch.compile`: elsewhere the advantages of
            its group come out NaN), an unknown `scale` or `aggregation`, GDPO with another scale,
            eps not positive.
    """
    check_rewards(reward_RK, group_R, channel_weight_K, scale, aggregation, eps)
    advantage_op = reference_op
    if _chosen(impl, reward_RK) == "triton":
        from g2rpo_kernels.group_advantage.triton import advantage_op
    with torch.no_grad():
        return advantage_op(reward_RK, group_R, channel_weight_K, scale, aggregation, eps)


def edge_coefficients(
    advantage_M: Tensor, weight_M: Tensor, member_ptr_T1: Tensor, *, impl: Impl | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over the members of each edge: (a_pos_T, a_neg_T, weight_T), exact for members of mixed sign.

    a_pos = sum_m w_m max(A_m, 0), a_neg = sum_m w_m min(A_m, 0), weight = sum_m w_m.

    Args:
        advantage_M, weight_M: [M] floating, edge by edge.
        member_ptr_T1: [T + 1] int64: edge t has the members `member_ptr_T1[t]:member_ptr_T1[t + 1]`.
        impl: `reference`, or `triton` (CUDA: one launch, float64 sums; an operator). None = by device.

    Raises:
        ValueError: lengths or devices that do not fit (that of `member_ptr_T1` is checked on the CPU, outside
            `torch.compile`).
    """
    check_tensors({"advantage_M": advantage_M, "weight_M": weight_M, "member_ptr_T1": member_ptr_T1})
    on_cpu = member_ptr_T1.device.type == "cpu" and not torch.compiler.is_compiling()
    num_members = len(weight_M)
    if on_cpu or not len(member_ptr_T1):
        num_members = int(member_ptr_T1[-1]) if len(member_ptr_T1) else -1
    if not num_members == len(advantage_M) == len(weight_M):
        raise ValueError(
            "advantage_M, weight_M: wanted member_ptr_T1[-1] entries,"
            f" got {len(advantage_M)}, {len(weight_M)} and {num_members}"
        )
    if _chosen(impl, weight_M) == "triton":
        from g2rpo_kernels.group_advantage.triton import edge_op

        with torch.no_grad():
            return edge_op(advantage_M, weight_M, member_ptr_T1)
    return edge_coefficients_reference(advantage_M, weight_M, member_ptr_T1)


def _chosen(impl: Impl | None, values: Tensor) -> str:
    """float64 is no reason for the reference here: the kernels compute in it."""
    if impl is None:
        return "triton" if values.device.type == "cuda" else "reference"
    if impl not in ("reference", "triton"):
        raise ValueError(f"impl: wanted 'reference', 'triton' or None, got {impl!r}")
    return choose_impl(impl, values)


def check_rewards(
    reward_RK: Tensor,
    group_R: Tensor,
    channel_weight_K: Tensor | None,
    scale: str,
    aggregation: str,
    eps: float,
) -> None:
    """Raise ValueError for what `group_advantage` refuses."""
    check_tensors({"reward_RK": reward_RK, "group_R": group_R})
    if reward_RK.dim() != 2 or list(group_R.shape) != [len(reward_RK)]:
        raise ValueError(
            f"reward_RK, group_R: wanted [R, K] and [R], got {list(reward_RK.shape)}, {list(group_R.shape)}"
        )
    if channel_weight_K is not None:
        _check_channel_weight(channel_weight_K, reward_RK.shape[1])
    if scale not in ("group", "none", "batch"):
        raise ValueError(f"scale: wanted 'group', 'none' or 'batch', got {scale!r}")
    if aggregation not in AGGREGATIONS:
        raise ValueError(f"aggregation: wanted one of {tuple(AGGREGATIONS)}, got {aggregation!r}")
    if aggregation == "normalize_then_sum" and scale != "group":
        raise ValueError(f"scale: wanted 'group' with aggregation='normalize_then_sum', got {scale!r}")
    if not 0 < eps < math.inf:
        raise ValueError(f"eps: wanted > 0 and finite, got {eps}")
    if shows_nan(reward_RK):
        check_finite_rewards("reward_RK", reward_RK)


def _check_channel_weight(channel_weight_K: Tensor, num_channels: int) -> None:
    check_tensors({"channel_weight_K": channel_weight_K})
    if list(channel_weight_K.shape) != [num_channels]:
        raise ValueError(f"channel_weight_K: wanted [{num_channels}], got {list(channel_weight_K.shape)}")
    if readable(channel_weight_K) and not channel_weight_K.isfinite().all():
        raise ValueError(f"channel_weight_K: wanted finite, got {channel_weight_K.tolist()}")


def check_finite_rewards(name: str, reward_RK: Tensor) -> None:
    """Raise ValueError where a reward is no number. Waits for the device."""
    bad = (~torch.isfinite(reward_RK)).nonzero()
    if len(bad):
        row, channel = (int(v) for v in bad[0])
        raise ValueError(
            f"{name}: wanted finite, got {float(reward_RK[row, channel])} at row {row}, channel {channel}"
        )
