"""Forward kernel of tree attention: one program per (query tile, head) walks over the key tiles it visits.

    m = max_j s_j,  l = sum_j exp(s_j - m),  out = sum_j exp(s_j - m) v_j / l,  lse = m + log l

with m, l and out kept while key tiles go by (online softmax, arXiv:2205.14135); full tiles first, without a
mask, then masked ones. Each program owns its rows: nothing is added by two of them.

Tile suffixes: m query rows, n key rows, e head width.
"""

# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

from g2rpo_kernels.tree_attention.triton.device_functions import (
    dot,
    keys_seen,
    load_column,
    load_rows,
    score,
    store_rows,
    tile_row,
    work_item,
)


@triton.jit
def _attend(
    out_me,
    max_m,
    sum_m,
    q_me,
    k_ptr,
    v_ptr,
    end_ptr,
    position_ptr,
    key_ptr,
    first,
    last,
    row_m,
    position_m,
    num_rows,
    width,
    stride_ks,
    stride_vs,
    scale,
    window,
    softcap,
    BLOCK_N: tl.constexpr,
    BLOCK_E: tl.constexpr,
    MASKED: tl.constexpr,
    WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr,
    PADDED: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Take in the key tiles `key_ptr[first:last]`."""
    row_n = tile_row(key_ptr, first, last, BLOCK_N)
    for entry in range(first, last):
        next_row_n = tile_row(key_ptr, entry + 1, last, BLOCK_N)
        k_ne = load_rows(k_ptr, row_n, num_rows, stride_ks, width, BLOCK_N, BLOCK_E, MASKED, PADDED)
        product_mn = dot(q_me, tl.trans(k_ne), tl.zeros((q_me.shape[0], BLOCK_N), tl.float32), UPCAST)
        score_mn, _ = score(product_mn, scale, softcap, CAPPED)
        if MASKED:
            seen_mn = keys_seen(
                row_m, position_m, end_ptr, position_ptr, row_n, num_rows, window, BLOCK_N, WINDOWED
            )
            score_mn = tl.where(seen_mn, score_mn, float("-inf"))
        new_max_m = tl.maximum(max_m, tl.max(score_mn, 1))
        # A row that has seen nothing yet has a maximum of -inf: any finite shift gives it zero weights.
        shift_m = tl.where(new_max_m == float("-inf"), 0.0, new_max_m) if MASKED else new_max_m
        weight_mn = tl.exp2(score_mn - shift_m[:, None])
        decay_m = tl.exp2(max_m - shift_m)
        sum_m = sum_m * decay_m + tl.sum(weight_mn, 1)
        v_ne = load_rows(v_ptr, row_n, num_rows, stride_vs, width, BLOCK_N, BLOCK_E, MASKED, PADDED)
        out_me = dot(weight_mn.to(v_ne.dtype), v_ne, out_me * decay_m[:, None], UPCAST)
        max_m = new_max_m
        row_n = next_row_n
    return out_me, max_m, sum_m


@triton.jit
def forward_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    lse_ptr,
    end_ptr,
    position_ptr,
    work_ptr,
    key_ptr,
    num_rows,
    num_heads,
    group,
    width,
    stride_qs,
    stride_qh,
    stride_ks,
    stride_kh,
    stride_vs,
    stride_vh,
    scale,
    window,
    softcap,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_E: tl.constexpr,
    WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr,
    PADDED: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """out [S, H, E] and lse [H, S] (units of log 2). Grid: M * H, a tile's heads together, to share keys."""
    head = (tl.program_id(0) % num_heads).to(tl.int64)
    work_ptr += tl.program_id(0) // num_heads * 4
    tile, first, full, last = work_item(work_ptr)
    row = tile * BLOCK_M
    kv_head = head // group
    k_ptr += kv_head * stride_kh
    v_ptr += kv_head * stride_vh
    q_ptr += head * stride_qh

    row_m = row + tl.arange(0, BLOCK_M)
    position_m = load_column(position_ptr, row, num_rows, BLOCK_M) if WINDOWED else row_m
    q_me = load_rows(q_ptr, row, num_rows, stride_qs, width, BLOCK_M, BLOCK_E, True, PADDED)
    out_me = tl.zeros((BLOCK_M, BLOCK_E), tl.float32)
    max_m = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    sum_m = tl.zeros((BLOCK_M,), tl.float32)
    for masked in tl.static_range(2):
        out_me, max_m, sum_m = _attend(
            out_me,
            max_m,
            sum_m,
            q_me,
            k_ptr,
            v_ptr,
            end_ptr,
            position_ptr,
            key_ptr,
            full if masked else first,
            last if masked else full,
            row_m,
            position_m,
            num_rows,
            width,
            stride_ks,
            stride_vs,
            scale,
            window,
            softcap,
            BLOCK_N,
            BLOCK_E,
            masked == 1,
            WINDOWED,
            CAPPED,
            PADDED,
            UPCAST,
        )
    sum_m = tl.where(sum_m == 0.0, 1.0, sum_m)  # rows past S saw nothing
    store_rows(
        out_ptr + head * width,
        out_me / sum_m[:, None],
        row,
        num_rows,
        num_heads * width,
        width,
        BLOCK_M,
        BLOCK_E,
    )
    lse_m = max_m + tl.log2(sum_m)
    tl.store(lse_ptr + head * num_rows + row_m, lse_m, mask=row_m < num_rows)
