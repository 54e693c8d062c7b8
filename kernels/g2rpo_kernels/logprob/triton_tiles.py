"""Rows of logits that are there as exponentials, tile by tile: statistics, and d logits in their place.

    e_v = exp((h_v - m_n) / T) for columns v of tile n,   m_n = max h over the tile

`linear_logprob.triton_exponentials` makes them. The row's statistics are those of its tiles, rebased to the
greatest maximum. d logits: p_v = e_v exp(m_n / T - lse), one factor a tile; 2 bytes read and written a logit.

Dimension key: C rows, V vocabulary, N column tiles. In kernels a suffix _n is the tiles of a row; _gv is a
group of tiles, all their columns.
"""

# pyright: reportGeneralTypeIssues=false, reportInvalidTypeForm=false

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from g2rpo_kernels.logprob.partials import RowNumbers
from g2rpo_kernels.logprob.triton_launch import on_device
from g2rpo_kernels.logprob.triton_rows import (
    FLOOR,
    LN_2,
    LOG2_E,
    at_least,
    both,
    finish_row,
    target_gradient,
    upstream,
)

TILE_COLUMNS = 256
GROUP = 8
"""Tiles of a row at a time."""
STAGES = 4
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
def row_of_tiles(max_ptr, rest_ptr, moment_ptr, target_logit_ptr, t, num_n, scale, BLOCK_N: tl.constexpr):
    """(logp, entropy, lse) of row t in float64."""
    first = t * num_n
    m, rest, moment = combined_tiles(
        max_ptr + first, rest_ptr + first, moment_ptr + first, num_n, scale, BLOCK_N
    )
    return finish_row(m, rest, moment, tl.load(target_logit_ptr + t).to(tl.float64) * scale, scale)


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
    g,
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
    if (c != 0.0) | (e != 0.0) | (g != 0.0):
        # lse / scale as two float32, as in `write_dlogits`.
        center = lse / scale
        high = center.to(tl.float32)
        low = (center - high.to(tl.float64)).to(tl.float32)
        scale_2 = (scale * LOG2_E).to(tl.float32)
        at_target = target_gradient(logp, entropy, c, e, g) * scale
        at_target = at_target.to(tl.float32)
        p_scale = ((g - c) * scale).to(tl.float32)
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


@triton.jit
def tile_numbers_kernel(
    max_ptr,
    rest_ptr,
    moment_ptr,
    target_logit_ptr,
    logp_ptr,
    entropy_ptr,
    lse_ptr,
    num_n,
    scale: tl.float64,
    BLOCK_N: tl.constexpr,
):
    t = tl.program_id(0).to(tl.int64)
    scale, _ = both(scale)
    logp, entropy, lse = row_of_tiles(
        max_ptr, rest_ptr, moment_ptr, target_logit_ptr, t, num_n, scale, BLOCK_N
    )
    tl.store(logp_ptr + t, logp.to(tl.float32))
    tl.store(entropy_ptr + t, entropy.to(tl.float32))
    tl.store(lse_ptr + t, lse)


@triton.jit
def tile_gradient_kernel(
    exp_ptr,
    max_ptr,
    target_logit_ptr,
    target_ptr,
    entropy_ptr,
    lse_ptr,
    c_ptr,
    e_ptr,
    g_ptr,
    num_v,
    num_n,
    stride_c,
    scale: tl.float64,
    TILE_V: tl.constexpr,
    GROUP: tl.constexpr,
    STAGES: tl.constexpr,
):
    t = tl.program_id(0).to(tl.int64)
    scale, _ = both(scale)
    lse = tl.load(lse_ptr + t).to(tl.float64)
    entropy = tl.load(entropy_ptr + t).to(tl.float64)
    c, e, g = upstream(c_ptr, e_ptr, g_ptr, t)
    logp = tl.load(target_logit_ptr + t).to(tl.float64) * scale - lse
    exponentials_to_dlogits(
        exp_ptr + t * stride_c, max_ptr + t * num_n, tl.load(target_ptr + t).to(tl.int32), logp, lse, entropy,
        c, e, g, num_v, num_n, scale, e_ptr is not None, TILE_V, GROUP, STAGES,
    )  # fmt: skip


class Exponentials(NamedTuple):
    """Some rows as exponentials, and their statistics tile by tile, of logits h before the temperature."""

    exp_CV: Tensor | None
    """exp((h - maximum of its tile) / T), in the operands' dtype, side by side in a row; None = not kept."""
    max_CN: Tensor
    """float32, contiguous, as the next two."""
    rest_CN: Tensor
    """Sum of exp over a tile's columns but the target."""
    moment_CN: Tensor
    """Sum of exp and its exponent, in units of log 2, over the same."""
    target_logit_C: Tensor
    """float32."""


def row_constants() -> dict[str, Any]:
    """What a launch that writes d logits is compiled for."""
    blocks = {"TILE_V": TILE_COLUMNS, "GROUP": GROUP, "STAGES": STAGES}
    return blocks | {"num_warps": 8, "enable_fp_fusion": False}


def numbers_constants(num_tiles: int) -> dict[str, Any]:
    """What a launch that makes the numbers of a row of so many tiles is compiled for."""
    return {"BLOCK_N": triton.next_power_of_2(num_tiles), "enable_fp_fusion": False}


def tile_numbers(given: Exponentials, temperature: float) -> RowNumbers:
    """logp, entropy and lse of each row, as `finished` gives them."""
    num_rows, num_tiles = given.max_CN.shape
    logp_C, entropy_C = (torch.empty_like(given.target_logit_C) for _ in range(2))
    row = RowNumbers(logp_C, entropy_C, torch.empty_like(logp_C, dtype=torch.float64))
    with on_device(given.max_CN):
        tile_numbers_kernel[(num_rows,)](
            given.max_CN,
            given.rest_CN,
            given.moment_CN,
            given.target_logit_C,
            *row,
            num_n=num_tiles,
            scale=1 / temperature,
            **numbers_constants(num_tiles),
        )
    return row


def tile_gradient_(
    given: Exponentials,
    target_C: Tensor,
    row: RowNumbers,
    c_C: Tensor | None,
    e_C: Tensor | None,
    g_C: Tensor | None,
    temperature: float,
) -> None:
    """d loss / d logits over the exponentials; arguments as of `row_gradient_`, `target_C` in [0, V)."""
    assert given.exp_CV is not None
    num_rows, num_tiles = given.max_CN.shape
    upstream = [None if value_C is None else value_C.contiguous() for value_C in (c_C, e_C, g_C)]
    with on_device(given.max_CN):
        tile_gradient_kernel[(num_rows,)](
            given.exp_CV,
            given.max_CN,
            given.target_logit_C,
            target_C,
            row.entropy_T,
            row.lse_T,
            *upstream,
            num_v=given.exp_CV.shape[1],
            num_n=num_tiles,
            stride_c=given.exp_CV.stride(0),
            scale=1 / temperature,
            **row_constants(),
        )
