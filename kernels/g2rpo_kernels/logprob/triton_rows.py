"""Device code of one row of logits: statistics in one sweep, d logits in another.

    h = logit + bias, with a softcap tanh(that / softcap);   z = scale h, scale = softcap / T or 1 / T
    m = max h,   y = scale (h - m),   rest = sum exp(y_v),   moment = sum y_v exp(y_v), both over v != target

Exponents are in units of log 2 in the sweeps (y / log 2, by a factor that is part of the scale), because the
hardware has exp2: exp would multiply each element by 1 / log 2 once more.

Held logits h are centred before they are scaled: a shift then costs nothing. The target's own term stays out
of both sums: for a confident row it is 1 and would swallow the digits of the rest. Every term of `moment` has
one sign, so nothing cancels. Sums run lane by lane in float32 and are rescaled only where the running maximum
moves (arXiv 1805.02867). What is left after the sweep, lanes to add and a few scalars per row, is float64:
logp, entropy and the target's column keep their digits without log1p or expm1.

Dimension key: a suffix _v is one tile of BLOCK_V columns.
"""

# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
FLOOR = tl.constexpr(-1e4)
"""exp(FLOOR) and exp2(FLOOR) are 0 in float32 and float64, and 0 * FLOOR is 0 where 0 * -inf is NaN."""
LOWEST = tl.constexpr(-1e30)
"""The maximum of nothing: finite, so that an impossible token minus it is -inf and not NaN."""


@triton.jit
def both(number):
    """A run-time float64 argument in float64 and float32."""
    exact = tl.zeros((), tl.float64) + number
    return exact, exact.to(tl.float32)


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
    is_near_v = tl.abs(u_v) < 0.625
    tanh_v = tl.where(is_near_v, near_v, tl.where(u_v < 0.0, -far_v, far_v))
    far_slope_v = 4.0 * q_v / ((1.0 + q_v) * (1.0 + q_v))
    return tanh_v, tl.where(is_near_v, 1.0 - near_v * near_v, far_slope_v)


@triton.jit
def held(x_v, inv_softcap, SOFTCAP: tl.constexpr):
    """(held logits, d held / d raw times the softcap)."""
    if SOFTCAP:
        h_v, slope_v = tanh_and_slope(x_v * inv_softcap)
    else:
        h_v = x_v
        slope_v = 1.0
    return h_v, slope_v


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
def add_tile(h_v, is_target_v, m, rest_v, moment_v, scale_2):
    """The running maximum, and the lane sums relative to it, with one more tile; `moment_v` and `scale_2` in
    units of log 2."""
    tile_m = tl.max(h_v, 0)
    if tile_m > m:
        shift = tl.maximum((m - tile_m) * scale_2, FLOOR)
        carry = tl.exp2(shift)
        moment_v = (moment_v + shift * rest_v) * carry
        rest_v = rest_v * carry
        m = tile_m
    below_v = at_least((h_v - m) * scale_2, FLOOR)
    exp_v = tl.where(is_target_v, 0.0, tl.exp2(below_v))
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
    STAGES: tl.constexpr,
):
    """(m, rest, moment) of one row in float64, in one sweep. `target` -1: no column is the target."""
    scale_2 = (scale * LOG2_E).to(tl.float32)
    lane_v = tl.arange(0, BLOCK_V)
    m = tl.zeros((), tl.float32) + LOWEST
    rest_v = tl.zeros((BLOCK_V,), tl.float32)
    moment_v = tl.zeros((BLOCK_V,), tl.float32)
    full = num_v // BLOCK_V * BLOCK_V
    for start in tl.range(0, full, BLOCK_V, num_stages=STAGES):
        x_v = load_tile(row_ptr, bias_ptr, lane_v, start, num_v, stride_v, False)
        h_v, _ = held(x_v, inv_softcap, SOFTCAP)
        m, rest_v, moment_v = add_tile(h_v, lane_v == target - start, m, rest_v, moment_v, scale_2)
    if full < num_v:
        x_v = load_tile(row_ptr, bias_ptr, lane_v, full, num_v, stride_v, True)
        h_v, _ = held(x_v, inv_softcap, SOFTCAP)
        h_v = tl.where(lane_v < num_v - full, h_v, -float("inf"))
        m, rest_v, moment_v = add_tile(h_v, lane_v == target - full, m, rest_v, moment_v, scale_2)
    return m.to(tl.float64), tl.sum(rest_v.to(tl.float64), 0), tl.sum(moment_v.to(tl.float64), 0) * LN_2


@triton.jit
def target_logit(row_ptr, bias_ptr, target, stride_v, scale, inv_softcap, SOFTCAP: tl.constexpr):
    """(z, d held / d raw times the softcap) of the target in float64; z = -inf where it is -1."""
    here = target >= 0
    x = tl.load(row_ptr + target.to(tl.int64) * stride_v, mask=here, other=0.0).to(tl.float64)
    if bias_ptr is not None:
        x += tl.load(bias_ptr + target, mask=here, other=0.0).to(tl.float64)
    slope = tl.zeros((), tl.float64) + 1.0
    if SOFTCAP:
        q = tl.exp(-2.0 * tl.abs(x * inv_softcap))
        x = tl.where(x < 0.0, q - 1.0, 1.0 - q) / (1.0 + q)
        slope = 4.0 * q / ((1.0 + q) * (1.0 + q))
    # Written over by d logits in place: no warp may start on that before all have read.
    tl.debug_barrier()
    return tl.where(here, x * scale, -float("inf")), slope


@triton.jit
def finish_row(m, rest, moment, target_z, scale):
    """(logp, entropy, lse) in float64."""
    top = m * scale
    below = target_z - top
    bounded = at_least(below, FLOOR)
    at_target = tl.exp(bounded)
    total = rest + at_target
    log_total = tl.log(total)
    entropy = log_total - (moment + bounded * at_target) / total
    return below - log_total, entropy, top + log_total


@triton.jit
def upstream(c_ptr, e_ptr, g_ptr, t):
    """(c, e, g) of row t in float64; 0 for what is not given."""
    c, e, g = tl.zeros((), tl.float64), tl.zeros((), tl.float64), tl.zeros((), tl.float64)
    if c_ptr is not None:
        c += tl.load(c_ptr + t)
    if e_ptr is not None:
        e += tl.load(e_ptr + t)
    if g_ptr is not None:
        g += tl.load(g_ptr + t)
    return c, e, g


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
    center_high,
    center_low,
    entropy_2,
    p_scale,
    e_scale_2,
    scale_2,
    inv_softcap,
    SOFTCAP: tl.constexpr,
    ENTROPY: tl.constexpr,
):
    """dz_v = p_v (g - c - e (log p_v + H)) slope / T, the target's column given; `_2`: in units of log 2."""
    h_v, slope_v = held(x_v, inv_softcap, SOFTCAP)
    logp_v = at_least(((h_v - center_high) - center_low) * scale_2, FLOOR)
    if ENTROPY:
        d_v = tl.exp2(logp_v) * (p_scale - e_scale_2 * (logp_v + entropy_2))
    else:
        d_v = tl.exp2(logp_v) * p_scale
    return tl.where(is_target_v, at_target, d_v * slope_v)


@triton.jit
def write_dlogits(
    row_ptr,
    out_ptr,
    bias_ptr,
    target,
    target_slope,
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
    STAGES: tl.constexpr,
):
    """Second sweep: d loss / d raw logits of a row. Zeros, unread, where no gradient comes in."""
    lane_v = tl.arange(0, BLOCK_V)
    full = num_v // BLOCK_V * BLOCK_V
    if (c != 0.0) | (e != 0.0) | (g != 0.0):
        # log p = (h - lse / scale) scale, that center as two float32: one would lose a shift of the logits.
        center = lse / scale
        high = center.to(tl.float32)
        low = (center - high.to(tl.float64)).to(tl.float32)
        scale_2 = (scale * LOG2_E).to(tl.float32)
        at_target = target_gradient(logp, entropy, c, e, g) * target_slope * inv_temperature
        at_target = at_target.to(tl.float32)
        p_scale = ((g - c) * inv_temperature).to(tl.float32)
        e_scale_2 = (e * inv_temperature * LN_2).to(tl.float32)
        entropy_2 = (entropy * LOG2_E).to(tl.float32)
        for start in tl.range(0, full, BLOCK_V, num_stages=STAGES):
            x_v = load_tile(row_ptr, bias_ptr, lane_v, start, num_v, stride_v, False)
            d_v = dlogits_tile(
                x_v, lane_v == target - start, at_target, high, low, entropy_2, p_scale, e_scale_2,
                scale_2, inv_softcap, SOFTCAP, ENTROPY,
            )  # fmt: skip
            ptr_v = out_ptr + (start + lane_v.to(tl.int64)) * out_stride_v
            tl.store(ptr_v, d_v.to(out_ptr.dtype.element_ty))
        if full < num_v:
            x_v = load_tile(row_ptr, bias_ptr, lane_v, full, num_v, stride_v, True)
            d_v = dlogits_tile(
                x_v, lane_v == target - full, at_target, high, low, entropy_2, p_scale, e_scale_2,
                scale_2, inv_softcap, SOFTCAP, ENTROPY,
            )  # fmt: skip
            ptr_v = out_ptr + (full + lane_v.to(tl.int64)) * out_stride_v
            tl.store(ptr_v, d_v.to(out_ptr.dtype.element_ty), mask=lane_v < num_v - full)
    else:
        zero_v = tl.zeros((BLOCK_V,), out_ptr.dtype.element_ty)
        for start in range(0, num_v, BLOCK_V):
            ptr_v = out_ptr + (start + lane_v.to(tl.int64)) * out_stride_v
            tl.store(ptr_v, zero_v, mask=lane_v < num_v - start)
