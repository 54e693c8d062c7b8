"""The surrogates and KL estimators of `surrogates.py` as device functions: value and d value / d logp.

Scalars of one row, in float64. `slope` is d ratio / d logp: the ratio, or 0 where its log was clamped.
"""

# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

MAX_LOG_RATIO = tl.constexpr(20.0)


@triton.jit
def bounded_log_ratio(log_ratio):
    return tl.minimum(tl.maximum(log_ratio, -MAX_LOG_RATIO), MAX_LOG_RATIO)


@triton.jit
def ratio_and_slope(log_ratio):
    bounded = bounded_log_ratio(log_ratio)
    ratio = tl.exp(bounded)
    return ratio, tl.where(bounded == log_ratio, ratio, 0.0)


@triton.jit
def clip(ratio, slope, low, high, dual_clip, DUAL: tl.constexpr):
    """(plus, d plus, minus, d minus, clipped plus, clipped minus)."""
    minus, d_minus, clipped = tl.maximum(ratio, low), tl.where(ratio >= low, slope, 0.0), ratio < low
    if DUAL:
        d_minus = tl.where(minus <= dual_clip, d_minus, 0.0)
        minus = tl.minimum(minus, dual_clip)
        clipped = clipped | (ratio > dual_clip)
    return tl.minimum(ratio, high), tl.where(ratio <= high, slope, 0.0), minus, d_minus, ratio > high, clipped


@triton.jit
def cispo(ratio, logp, low, high):
    """(value, d value, clipped) of both signs: the bounded ratio is a constant weight."""
    weight = tl.minimum(tl.maximum(ratio, low), high)
    return weight * logp, weight, (ratio < low) | (ratio > high)


@triton.jit
def sapo(ratio, slope, tau):
    """(value, d value) of the sign that `tau` belongs to."""
    gate = 1.0 / (1.0 + tl.exp(tau * (1.0 - ratio)))
    return 4.0 / tau * gate, 4.0 * gate * (1.0 - gate) * slope


@triton.jit
def kl_k1(log_ratio):
    return log_ratio, log_ratio * 0.0 + 1.0


@triton.jit
def kl_k2(log_ratio):
    return log_ratio * log_ratio * 0.5, log_ratio


@triton.jit
def kl_k3(log_ratio):
    bounded = bounded_log_ratio(log_ratio)
    below = tl.exp(-bounded) - 1.0
    return below + bounded, tl.where(bounded == log_ratio, -below, 0.0)
