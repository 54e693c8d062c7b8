"""The surrogates and KL estimators of `surrogates.py` as device functions: value and d value / d logp.

Scalars of one row, in float64. `slope` is d ratio / d logp: the ratio, or 0 where its log was clamped.

Bounds are comparisons, not `tl.minimum` and `tl.maximum`, which return the bound for NaN: a log-probability
that is NaN has to show in the loss.
"""

# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

MAX_LOG_RATIO = tl.constexpr(20.0)


@triton.jit
def at_least(value, low):
    """max(value, low); NaN stays NaN."""
    return tl.where(value < low, low, value)


@triton.jit
def at_most(value, high):
    """min(value, high); NaN stays NaN."""
    return tl.where(value > high, high, value)


@triton.jit
def bounded_log_ratio(log_ratio):
    return at_most(at_least(log_ratio, -MAX_LOG_RATIO), MAX_LOG_RATIO)


@triton.jit
def ratio_and_slope(log_ratio):
    ratio = tl.exp(bounded_log_ratio(log_ratio))
    return ratio, tl.where(tl.abs(log_ratio) > MAX_LOG_RATIO, 0.0, ratio)


@triton.jit
def clip(ratio, slope, low, high, dual):
    """`dual` is inf where there is none."""
    minus, d_minus = at_least(ratio, low), tl.where(ratio < low, 0.0, slope)
    d_minus = tl.where(minus > dual, 0.0, d_minus)
    plus, d_plus = at_most(ratio, high), tl.where(ratio > high, 0.0, slope)
    return plus, d_plus, at_most(minus, dual), d_minus, ratio > high, (ratio < low) | (ratio > dual)


@triton.jit
def cispo(ratio, logp, low, high):
    """The bounded ratio is a constant weight."""
    weight = at_most(at_least(ratio, low), high)
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
    return below + bounded, tl.where(tl.abs(log_ratio) > MAX_LOG_RATIO, 0.0, -below)
