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
def clip(ratio, slope, low, high, dual):
    """`dual` is inf where there is none."""
    minus, d_minus = tl.maximum(ratio, low), tl.where(ratio >= low, slope, 0.0)
    d_minus = tl.where(minus <= dual, d_minus, 0.0)
    plus, d_plus = tl.minimum(ratio, high), tl.where(ratio <= high, slope, 0.0)
    return plus, d_plus, tl.minimum(minus, dual), d_minus, ratio > high, (ratio < low) | (ratio > dual)


@triton.jit
def cispo(ratio, logp, low, high):
    """The bounded ratio is a constant weight."""
    weight = tl.minimum(tl.maximum(ratio, low), high)
    clipped = (ratio < low) | (ratio > high)
    return weight * logp, weight, weight * logp, weight, clipped, clipped


@triton.jit
def sapo(ratio, slope, tau_pos, tau_neg):
    plus = 1.0 / (1.0 + tl.exp(tau_pos * (1.0 - ratio)))
    minus = 1.0 / (1.0 + tl.exp(tau_neg * (1.0 - ratio)))
    d_plus, d_minus = 4.0 * plus * (1.0 - plus) * slope, 4.0 * minus * (1.0 - minus) * slope
    never = ratio < 0.0
    return 4.0 / tau_pos * plus, d_plus, 4.0 / tau_neg * minus, d_minus, never, never


@triton.jit
def reinforce(ratio, logp):
    one, never = ratio * 0.0 + 1.0, ratio < 0.0
    return logp, one, logp, one, never, never


@triton.jit
def surrogate(ratio, slope, logp, s0, s1, s2, s3, SURROGATE: tl.constexpr):
    """(plus, d plus, minus, d minus, clipped plus, clipped minus) of that one, `s0` to `s3` its `scalars`."""
    if SURROGATE == "clip":
        values = clip(ratio, slope, s0, s1, s2)
    elif SURROGATE == "cispo":
        values = cispo(ratio, logp, s0, s1)
    elif SURROGATE == "sapo":
        values = sapo(ratio, slope, s0, s1)
    else:
        tl.static_assert(SURROGATE == "reinforce", "a surrogate without a device function")
        values = reinforce(ratio, logp)
    return values


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
