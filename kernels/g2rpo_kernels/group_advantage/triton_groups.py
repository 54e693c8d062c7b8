"""Device code of group statistics: one rollout's deviation from its group and the group's standard deviation.

Every program sweeps all R rollouts for the members of its own group: rewards are few, and nothing has to be
sorted, launched or synchronised before. float64 throughout, sums in the order of the rollouts.

Dimension key: R rollouts; a suffix _r is one block of them.
"""

# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

TIE = tl.constexpr(64 * 2.220446049250313e-16)
"""As in `reference.py`: a group whose rewards differ by less, relatively, differs by rounding."""


@triton.jit
def inverse(number):
    """1 / number in float64, by Newton's steps from float32: the division of float64 is a call on the stack.

    For numbers within the range of float32: counts, standard deviations.
    """
    guess = (1.0 / number.to(tl.float32)).to(tl.float64)
    guess = guess * (2.0 - number * guess)
    return guess * (2.0 - number * guess)


@triton.jit
def totals(reward_ptr, channel_weight_ptr, offs_r, mask_r, stride_r, stride_k, num_k):
    """sum_k w_k reward_rk in float64; all weights 1 without `channel_weight_ptr`."""
    ptr_r = reward_ptr + offs_r.to(tl.int64) * stride_r
    total_r = offs_r.to(tl.float64) * 0.0
    for k in range(num_k):
        reward_r = tl.load(ptr_r + k * stride_k, mask=mask_r, other=0.0).to(tl.float64)
        if channel_weight_ptr is not None:
            reward_r *= tl.load(channel_weight_ptr + k).to(tl.float64)
        total_r += reward_r
    return total_r


@triton.jit
def spread(
    reward_ptr,
    channel_weight_ptr,
    group_ptr,
    rollout,
    num_r,
    num_k,
    stride_r,
    stride_k,
    WHOLE: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """(reward of `rollout` minus the mean, standard deviation), over its group or the WHOLE batch.

    std has n - 1, that of one value is 0; deviations within a tie are exactly 0, and NaN in a group with a
    reward that is not finite.
    """
    lane_r = tl.arange(0, BLOCK_R)
    own = tl.load(group_ptr + rollout)
    low_r = tl.full((BLOCK_R,), float("inf"), tl.float64)
    high_r = tl.full((BLOCK_R,), -float("inf"), tl.float64)
    for start in range(0, num_r, BLOCK_R):
        mask_r = lane_r < num_r - start
        total_r = totals(reward_ptr, channel_weight_ptr, start + lane_r, mask_r, stride_r, stride_k, num_k)
        if not WHOLE:
            mask_r = mask_r & (tl.load(group_ptr + start + lane_r, mask=mask_r, other=0) == own)
        low_r = tl.minimum(low_r, tl.where(mask_r, total_r, float("inf")))
        high_r = tl.maximum(high_r, tl.where(mask_r, total_r, -float("inf")))
    low, high = tl.min(low_r, 0), tl.max(high_r, 0)
    tied = high - low <= tl.maximum(tl.abs(low), tl.abs(high)) * TIE
    # From the minimum: equal rewards give exact zeros, and a common offset costs no digits.
    sum_r = tl.zeros((BLOCK_R,), tl.float64)
    count_r = tl.zeros((BLOCK_R,), tl.float64)
    for start in range(0, num_r, BLOCK_R):
        mask_r = lane_r < num_r - start
        total_r = totals(reward_ptr, channel_weight_ptr, start + lane_r, mask_r, stride_r, stride_k, num_k)
        if not WHOLE:
            mask_r = mask_r & (tl.load(group_ptr + start + lane_r, mask=mask_r, other=0) == own)
        sum_r += tl.where(mask_r, total_r - low, 0.0)
        count_r += tl.where(mask_r, 1.0, 0.0)
    count, above = tl.sum(count_r, 0), tl.sum(sum_r, 0)
    tied = tied & (above < float("inf"))  # the extremes pass over NaN, and inf - low <= inf
    mean = tl.where(tied, 0.0, above * inverse(count))
    square_r = tl.zeros((BLOCK_R,), tl.float64)
    for start in range(0, num_r, BLOCK_R):
        mask_r = lane_r < num_r - start
        total_r = totals(reward_ptr, channel_weight_ptr, start + lane_r, mask_r, stride_r, stride_k, num_k)
        if not WHOLE:
            mask_r = mask_r & (tl.load(group_ptr + start + lane_r, mask=mask_r, other=0) == own)
        apart_r = tl.where(mask_r, total_r - low - mean, 0.0)
        square_r += apart_r * apart_r
    variance = tl.where(tied, 0.0, tl.sum(square_r, 0) * inverse(tl.maximum(count - 1.0, 1.0)))
    # The square root of float64 is such a call, too.
    std = tl.exp(0.5 * tl.log(variance))
    total = totals(reward_ptr, channel_weight_ptr, rollout, rollout >= 0, stride_r, stride_k, num_k)
    return tl.where(tied, 0.0, total - low - mean), std


@triton.jit
def advantage(
    reward_ptr,
    channel_weight_ptr,
    group_ptr,
    rollout,
    num_r,
    num_k,
    stride_r,
    stride_k,
    eps,
    SCALE: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """Advantage of one rollout in float64: `sum_then_normalize` of `reference.py`."""
    deviation, std = spread(
        reward_ptr, channel_weight_ptr, group_ptr, rollout, num_r, num_k, stride_r, stride_k, False, BLOCK_R
    )
    if SCALE == "batch":
        _, std = spread(
            reward_ptr,
            channel_weight_ptr,
            group_ptr,
            rollout,
            num_r,
            num_k,
            stride_r,
            stride_k,
            True,
            BLOCK_R,
        )
    if SCALE != "none":
        deviation = deviation * inverse(std + eps)
    return deviation
