"""The objective of one edge on the device: `objective.py` for token ratios, with its derivatives and metrics.

Scalars of one row, in float64. Where all coefficients are zero, log-probabilities count as 0 (NaN included);
elsewhere a NaN among them makes the loss NaN.
"""

# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

from g2rpo_kernels.policy_loss.triton_surrogates import (
    at_least,
    at_most,
    bounded_log_ratio,
    kl_k1,
    kl_k2,
    kl_k3,
    ratio_and_slope,
    surrogate,
)

STAT_ROWS = (
    "active",
    "used",
    "sampled",
    "entropy",
    "ratio",
    "approx_kl",
    "clipped",
    "kl",
    "importance_raw",
    "importance",
    "importance_outside",
    "logp",
)
"""Rows of stats_KT: three masks, then values, 0 outside their mask."""


@triton.jit
def kl_penalty(log_ratio, KL: tl.constexpr):
    """(estimate, d estimate / d logp)."""
    if KL == "k1":
        value, slope = kl_k1(log_ratio)
    elif KL == "k2":
        value, slope = kl_k2(log_ratio)
    else:
        tl.static_assert(KL == "k3")
        value, slope = kl_k3(log_ratio)
    return value, slope


@triton.jit
def log_ratio_to(logp, other_ptr, t, active):
    """logp - other in float64, 0 where inactive; exactly 0 where they agree in float32.

    The last is for an `other` that is this very logp, stored: the first ratio must be exactly 1.
    """
    other = tl.load(other_ptr + t)
    apart = active & (logp.to(tl.float32) != other.to(tl.float32))
    return tl.where(apart, logp - other.to(tl.float64), 0.0)


@triton.jit
def importance_weight(logp, log_ratio, rollout_ptr, t, active):
    """(exp(old - rollout) before any cap, whether the engine sampled the token); 1 where it did not."""
    rollout = tl.load(rollout_ptr + t)
    sampled = active & (rollout == rollout)
    log_weight = log_ratio_to(logp, rollout_ptr, t, sampled) - log_ratio
    return tl.exp(tl.where(sampled, bounded_log_ratio(log_weight), 0.0)), sampled


@triton.jit
def bounded_importance(raw, low, cap, IMPORTANCE: tl.constexpr):
    """(weight as it is used, whether the raw one lies outside the bounds)."""
    outside = (raw < low) | (raw > cap)
    if IMPORTANCE == "mask":
        used = tl.where(outside, 0.0, raw)
    else:
        tl.static_assert(IMPORTANCE == "truncate")
        used = at_most(at_least(raw, low), cap)
    return used, outside


@triton.jit
def edge_loss(
    logp,
    entropy,
    a_pos,
    a_neg,
    weight,
    t,
    num_t,
    stats_ptr,
    old_ptr,
    ref_ptr,
    rollout_ptr,
    s0,
    s1,
    s2,
    s3,
    kl_coef,
    entropy_coef,
    importance_cap,
    importance_low,
    SURROGATE: tl.constexpr,
    KL: tl.constexpr,
    PENALTY: tl.constexpr,
    KL_TIMES_RATIO: tl.constexpr,
    IMPORTANCE: tl.constexpr,
):
    """(loss, d loss / d logp, d loss / d entropy) of edge t; its metrics go to column t of stats_KT."""
    active = (a_pos != 0.0) | (a_neg != 0.0) | (weight != 0.0)
    used = (a_pos != 0.0) | (a_neg != 0.0)
    logp, entropy = tl.where(active, logp, 0.0), tl.where(active, entropy, 0.0)
    own = logp - logp  # 0, or NaN where the log-probability is no number
    log_ratio = own
    if old_ptr is not None:
        old = tl.load(old_ptr + t)
        log_ratio = tl.where(old == old, log_ratio_to(logp, old_ptr, t, active), own)  # NaN: on-policy
    ratio, slope = ratio_and_slope(log_ratio)
    plus, d_plus, minus, d_minus, clipped_plus, clipped_minus = surrogate(
        ratio, slope, logp, s0, s1, s2, s3, SURROGATE
    )
    gain, d_gain = a_pos * plus + a_neg * minus, a_pos * d_plus + a_neg * d_minus
    none = tl.zeros((), tl.float64)
    raw, importance, kl, d_kl = none, none, none, none
    sampled = active & (none != none)
    outside = sampled
    if rollout_ptr is not None:
        raw, sampled = importance_weight(logp, log_ratio, rollout_ptr, t, active)
        if IMPORTANCE != "none":
            importance, outside = bounded_importance(raw, importance_low, importance_cap, IMPORTANCE)
            gain, d_gain = gain * importance, d_gain * importance
    loss, c = -gain - entropy_coef * weight * entropy, -d_gain
    if ref_ptr is not None:
        kl, d_kl = kl_penalty(log_ratio_to(logp, ref_ptr, t, active), KL)
        if PENALTY:
            times, d_times = kl, d_kl
            if KL_TIMES_RATIO:
                times, d_times = kl * ratio, d_kl * ratio + kl * slope
            loss += kl_coef * weight * times
            c += kl_coef * weight * d_times
    approx_kl, _ = kl_k3(-log_ratio)
    clipped = ((a_pos != 0.0) & clipped_plus) | ((a_neg != 0.0) & clipped_minus)
    column_ptr = stats_ptr + t
    tl.store(column_ptr, active.to(tl.float32))
    tl.store(column_ptr + num_t, used.to(tl.float32))
    tl.store(column_ptr + 2 * num_t, sampled.to(tl.float32))
    tl.store(column_ptr + 3 * num_t, entropy.to(tl.float32))
    tl.store(column_ptr + 4 * num_t, tl.where(used, ratio, 0.0).to(tl.float32))
    tl.store(column_ptr + 5 * num_t, tl.where(used, approx_kl, 0.0).to(tl.float32))
    tl.store(column_ptr + 6 * num_t, clipped.to(tl.float32))
    tl.store(column_ptr + 7 * num_t, kl.to(tl.float32))
    tl.store(column_ptr + 8 * num_t, tl.where(sampled, raw, 0.0).to(tl.float32))
    tl.store(column_ptr + 9 * num_t, tl.where(sampled, importance, 0.0).to(tl.float32))
    tl.store(column_ptr + 10 * num_t, (sampled & outside).to(tl.float32))
    tl.store(column_ptr + 11 * num_t, logp.to(tl.float32))
    return loss, c, -entropy_coef * weight
