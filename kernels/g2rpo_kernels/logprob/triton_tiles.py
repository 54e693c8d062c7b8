"""Device code of one row that is there as exponentials, tile by tile (`linear_logprob.triton_exponentials`).

    e_v = exp((h_v - m_n) / T) for columns v of tile n,   m_n = max h over the tile

The row's statistics are those of its tiles, rebased to the greatest maximum. d logits take the place of the
exponentials: p_v = e_v exp(m_n / T - lse), one factor a tile.

Dimension key: a suffix _n is the tiles of a row; _gv is a group of tiles, all their columns.
"""

# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

from g2rpo_kernels.logprob.triton_rows import FLOOR, LN_2, LOG2_E, at_least, target_gradient

LEAST = tl.constexpr(1e-38)
"""In place of 0 under a logarithm."""


@triton.jit
def combined_tiles(max_ptr, rest_ptr, moment_ptr, num_n, scale, BLOCK_N: tl.constexpr):
    """(m, rest, moment) of one row in float64, as `row_sums` gives them."""
    lane_n = tl.arange(0, BLOCK_N)
    here_n = lane_n < num_n
    max_n = tl.load(max_ptr + lane_n, mask=here_n, other=-float("inf"))
    m = tl.max(max_n, 0)
    shift_n = at_least((max_n - m) * (scale * LOG2_E).to(tl.float32), FLOOR)
    carry_n = tl.exp2(shift_n).to(tl.float64)
    rest_n = tl.load(rest_ptr + lane_n, mask=here_n, other=0.0).to(tl.float64)
    moment_n = tl.load(moment_ptr + lane_n, mask=here_n, other=0.0).to(tl.float64)
    moment_n = (moment_n + shift_n.to(tl.float64) * rest_n) * carry_n
    return m.to(tl.float64), tl.sum(rest_n * carry_n, 0), tl.sum(moment_n, 0) * LN_2


@triton.jit
def _group_to_dlogits(
    row_ptr,
    max_ptr,
    start,
    lane_gv,
    group_g1,
    target,
    at_target,
    high,
    low,
    scale_2,
    p_scale,
    e_scale_2,
    entropy_2,
    num_v,
    num_n,
    ENTROPY: tl.constexpr,
    TILE_V: tl.constexpr,
    MASKED: tl.constexpr,
):
    """The tiles from `start` on."""
    ptr_gv = row_ptr + start * TILE_V + lane_gv
    if MASKED:
        exp_gv = tl.load(ptr_gv, mask=lane_gv < num_v - start * TILE_V, other=0.0).to(tl.float32)
        max_g1 = tl.load(max_ptr + start + group_g1, mask=group_g1 < num_n - start, other=0.0)
    else:
        exp_gv = tl.load(ptr_gv).to(tl.float32)
        max_g1 = tl.load(max_ptr + start + group_g1)
    shift_g1 = at_least(((max_g1 - high) - low) * scale_2, FLOOR)
    d_gv = exp_gv * tl.exp2(shift_g1)
    if ENTROPY:
        logp_gv = at_least(tl.log2(at_least(exp_gv, LEAST)) + shift_g1, FLOOR)
        d_gv *= p_scale - e_scale_2 * (logp_gv + entropy_2)
    else:
        d_gv *= p_scale
    d_gv = tl.where(lane_gv == target - start * TILE_V, at_target, d_gv).to(row_ptr.dtype.element_ty)
    if MASKED:
        tl.store(ptr_gv, d_gv, mask=lane_gv < num_v - start * TILE_V)
    else:
        tl.store(ptr_gv, d_gv)


@triton.jit
def exponentials_to_dlogits(
    row_ptr,
    max_ptr,
    target,
    logp,
    lse,
    entropy,
    c,
    e,
    num_v,
    num_n,
    scale,
    ENTROPY: tl.constexpr,
    TILE_V: tl.constexpr,
    GROUP: tl.constexpr,
    STAGES: tl.constexpr,
):
    """d loss / d raw logits of a row over its exponentials; zeros, unread, where no gradient comes in.
    `scale`: 1 / T."""
    group_g1 = tl.arange(0, GROUP)[:, None]
    lane_gv = group_g1 * TILE_V + tl.arange(0, TILE_V)[None, :]
    if (c != 0.0) | (e != 0.0):
        # lse / scale as two float32, as in `write_dlogits`.
        center = lse / scale
        high = center.to(tl.float32)
        low = (center - high.to(tl.float64)).to(tl.float32)
        scale_2 = (scale * LOG2_E).to(tl.float32)
        at_target = target_gradient(logp, entropy, c, e, tl.zeros((), tl.float64)) * scale
        at_target = at_target.to(tl.float32)
        p_scale = (-c * scale).to(tl.float32)
        e_scale_2 = (e * scale * LN_2).to(tl.float32)
        entropy_2 = (entropy * LOG2_E).to(tl.float32)
        full = num_v // (GROUP * TILE_V) * GROUP
        for start in tl.range(0, full, GROUP, num_stages=STAGES):
            _group_to_dlogits(
                row_ptr, max_ptr, start, lane_gv, group_g1, target, at_target, high, low, scale_2,
                p_scale, e_scale_2, entropy_2, num_v, num_n, ENTROPY, TILE_V, False,
            )  # fmt: skip
        if full < num_n:
            _group_to_dlogits(
                row_ptr, max_ptr, full, lane_gv, group_g1, target, at_target, high, low, scale_2,
                p_scale, e_scale_2, entropy_2, num_v, num_n, ENTROPY, TILE_V, True,
            )  # fmt: skip
    else:
        zero_gv = tl.zeros((GROUP, TILE_V), row_ptr.dtype.element_ty)
        for start in range(0, num_n, GROUP):
            tl.store(row_ptr + start * TILE_V + lane_gv, zero_gv, mask=lane_gv < num_v - start * TILE_V)
