"""Device code of one row of logits: statistics in one sweep, d logits in another.

    z = softcap tanh(x / softcap) / temperature,   x = logit + bias
    m = max z,   rest = sum_{v != target} exp(z_v - m),   moment = sum_{v != target} (z_v - m) exp(z_v - m)

The target's own term stays out of both sums: for a confident row it is 1 and would swallow the digits of
the rest. Every term of `moment` has one sign, so nothing cancels. Sums run lane by lane in float32 and are
rescaled only where the running maximum moves (arXiv 1805.02867). What is left after the sweep, a few scalars
per row, is float64: logp, entropy and the target's column keep their digits without log1p or expm1.

Dimension key: a suffix _v is one tile of BLOCK_V columns.
"""

# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

FLOOR = tl.constexpr(-1e4)
"""exp(FLOOR) is 0 in float32 and float64, and 0 * FLOOR is 0 where 0 * -inf is NaN."""
LOWEST = tl.constexpr(-3.4e38)
"""The maximum of nothing: finite, so that an impossible token minus it is -inf and not NaN."""


@triton.jit
def at_least(value, floor):
    """max(value, floor); NaN stays NaN."""
    return tl.maximum(value, floor, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def tanh_and_slope(u_v):
    """(tanh u, 1 - tanh(u)^2), each to a few roundings: a difference of exponentials only where none cancels.

    The polynomial is that of the Cephes library's tanhf.
    """
    q_v = tl.exp(-2.0 * tl.abs(u_v))
    far_v = (1.0 - q_v) / (1.0 + q_v)
    square_v = u_v * u_v
    series_v = -5.70498872745e-3 * square_v + 2.06390887954e-2
    series_v = series_v * square_v - 5.37397155531e-2
    series_v = series_v * square_v + 1.33314422036e-1
    series_v = series_v * square_v - 3.33332819422e-1
    near_v = u_v + u_v * (square_v * series_v)
    tanh_v = tl.where(tl.abs(u_v) < 0.625, near_v, tl.where(u_v < 0.0, -far_v, far_v))
    return tanh_v, 4.0 * q_v / ((1.0 + q_v) * (1.0 + q_v))


@triton.jit
def effective(x_v, scale, inv_softcap, SOFTCAP: tl.constexpr):
    """(effective logits, d effective / d raw times the temperature). scale = softcap / T, or 1 / T."""
    if SOFTCAP:
        z_v, slope_v = tanh_and_slope(x_v * inv_softcap)
    else:
        z_v = x_v
        slope_v = 1.0
    return z_v * scale, slope_v


@triton.jit
def load_tile(row_ptr, bias_ptr, lane_v, start, num_v, stride_v, MASKED: tl.constexpr):
    """float32 logits plus bias of the columns from `start` on; 0 beyond the vocabulary."""
    ptr_v = row_ptr + (start + lane_v.to(tl.int64)) * stride_v
    if MASKED:
        x_v = tl.load(ptr_v, mask=lane_v < num_v - start, other=0.0).to(tl.float32)
    else:
        x_v = tl.load(ptr_v).to(tl.float32)
    if bias_ptr is not None:
        if MASKED:
            x_v += tl.load(bias_ptr + start + lane_v, mask=lane_v < num_v - start, other=0.0).to(tl.float32)
        else:
            x_v += tl.load(bias_ptr + start + lane_v).to(tl.float32)
    return x_v


@triton.jit
def add_tile(z_v, is_target_v, m, rest_v, moment_v):
    """The running maximum, and the lane sums relative to it, with one more tile."""
    tile_m = tl.max(z_v, 0)
    if tile_m > m:
        shift = tl.maximum(m - tile_m, FLOOR)
        carry = tl.exp(shift)
        moment_v = (moment_v + shift * rest_v) * carry
        rest_v = rest_v * carry
        m = tile_m
    below_v = at_least(z_v - m, FLOOR)
    exp_v = tl.where(is_target_v, 0.0, tl.exp(below_v))
    return m, rest_v + exp_v, moment_v + below_v * exp_v


@triton.jit
def row_sums(
    row_ptr,
    bias_ptr,
    target,
    num_v,
    stride_v,
    scale,
    inv_softcap,
    SOFTCAP: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """(m, rest, moment) of one row, in one sweep. No column is the target where `target` is -1."""
    lane_v = tl.arange(0, BLOCK_V)
    m = LOWEST + tl.zeros((), tl.float32)
    rest_v = tl.zeros((BLOCK_V,), tl.float32)
    moment_v = tl.zeros((BLOCK_V,), tl.float32)
    full = num_v // BLOCK_V * BLOCK_V
    for start in range(0, full, BLOCK_V):
        x_v = load_tile(row_ptr, bias_ptr, lane_v, start, num_v, stride_v, False)
        z_v, _ = effective(x_v, scale, inv_softcap, SOFTCAP)
        m, rest_v, moment_v = add_tile(z_v, lane_v == target - start, m, rest_v, moment_v)
    if full < num_v:
        x_v = load_tile(row_ptr, bias_ptr, lane_v, full, num_v, stride_v, True)
        z_v, _ = effective(x_v, scale, inv_softcap, SOFTCAP)
        z_v = tl.where(lane_v < num_v - full, z_v, -float("inf"))
        m, rest_v, moment_v = add_tile(z_v, lane_v == target - full, m, rest_v, moment_v)
    return m, tl.sum(rest_v, 0), tl.sum(moment_v, 0)


@triton.jit
def target_logit(row_ptr, bias_ptr, target, stride_v, scale, inv_softcap, SOFTCAP: tl.constexpr):
    """Effective logit of the target, -inf where it is -1. float32."""
    here = target >= 0
    x = tl.load(row_ptr + target.to(tl.int64) * stride_v, mask=here, other=0.0).to(tl.float32)
    if bias_ptr is not None:
        x += tl.load(bias_ptr + target, mask=here, other=0.0).to(tl.float32)
    z, _ = effective(x, scale, inv_softcap, SOFTCAP)
    # Written over by d logits in place: no warp may start on that before all have read.
    tl.debug_barrier()
    return tl.where(here, z, -float("inf"))


@triton.jit
def finish_row(m, rest, moment, target_z):
    """(logp, entropy, lse) in float64."""
    below = target_z.to(tl.float64) - m.to(tl.float64)
    bounded = at_least(below, FLOOR)
    at_target = tl.exp(bounded)
    total = rest.to(tl.float64) + at_target
    log_total = tl.log(total)
    entropy = log_total - (moment.to(tl.float64) + bounded * at_target) / total
    return below - log_total, entropy, m.to(tl.float64) + log_total


@triton.jit
def target_gradient(logp, entropy, c, e, g):
    """d loss / d effective logit of the target, in float64: 1 - p would cancel in float32."""
    bounded = at_least(logp, FLOOR)
    p = tl.exp(bounded)
    return c * (1.0 - p) + p * (g - e * (bounded + entropy))


@triton.jit
def dlogits_tile(
    x_v,
    is_target_v,
    at_target,
    lse_high,
    lse_low,
    entropy,
    p_scale,
    e_scale,
    scale,
    inv_softcap,
    SOFTCAP: tl.constexpr,
    ENTROPY: tl.constexpr,
):
    """dz_v = p_v (g - c - e (log p_v + H)) slope / T, the target's column given."""
    z_v, slope_v = effective(x_v, scale, inv_softcap, SOFTCAP)
    logp_v = at_least((z_v - lse_high) - lse_low, FLOOR)
    if ENTROPY:
        d_v = tl.exp(logp_v) * (p_scale - e_scale * (logp_v + entropy))
    else:
        d_v = tl.exp(logp_v) * p_scale
    return tl.where(is_target_v, at_target, d_v) * slope_v


@triton.jit
def write_dlogits(
    row_ptr,
    out_ptr,
    bias_ptr,
    target,
    logp,
    lse,
    entropy,
    c,
    e,
    g,
    num_v,
    stride_v,
    out_stride_v,
    scale,
    inv_softcap,
    inv_temperature,
    SOFTCAP: tl.constexpr,
    ENTROPY: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Second sweep: d loss / d raw logits of a row. Zeros, unread, where no gradient comes in."""
    lane_v = tl.arange(0, BLOCK_V)
    full = num_v // BLOCK_V * BLOCK_V
    if (c != 0.0) | (e != 0.0) | (g != 0.0):
        # lse as a sum of two float32: one alone would lose a shift of the logits from every p.
        high = lse.to(tl.float32)
        low = (lse - high.to(tl.float64)).to(tl.float32)
        at_target = (target_gradient(logp, entropy, c, e, g) * inv_temperature).to(tl.float32)
        p_scale, e_scale = ((g - c) * inv_temperature).to(tl.float32), (e * inv_temperature).to(tl.float32)
        entropy = entropy.to(tl.float32)
        for start in range(0, full, BLOCK_V):
            x_v = load_tile(row_ptr, bias_ptr, lane_v, start, num_v, stride_v, False)
            d_v = dlogits_tile(
                x_v, lane_v == target - start, at_target, high, low, entropy, p_scale, e_scale,
                scale, inv_softcap, SOFTCAP, ENTROPY,
            )  # fmt: skip
            ptr_v = out_ptr + (start + lane_v.to(tl.int64)) * out_stride_v
            tl.store(ptr_v, d_v.to(out_ptr.dtype.element_ty))
        if full < num_v:
            x_v = load_tile(row_ptr, bias_ptr, lane_v, full, num_v, stride_v, True)
            d_v = dlogits_tile(
                x_v, lane_v == target - full, at_target, high, low, entropy, p_scale, e_scale,
                scale, inv_softcap, SOFTCAP, ENTROPY,
            )  # fmt: skip
            ptr_v = out_ptr + (full + lane_v.to(tl.int64)) * out_stride_v
            tl.store(ptr_v, d_v.to(out_ptr.dtype.element_ty), mask=lane_v < num_v - full)
    else:
        zero_v = tl.zeros((BLOCK_V,), out_ptr.dtype.element_ty)
        for start in range(0, num_v, BLOCK_V):
            ptr_v = out_ptr + (start + lane_v.to(tl.int64)) * out_stride_v
            tl.store(ptr_v, zero_v, mask=lane_v < num_v - start)
