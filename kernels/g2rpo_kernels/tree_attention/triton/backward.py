"""Backward kernels of tree attention, deterministic: every sum has one owner and a fixed order, no atomics.

    weight_ij = exp(s_ij - lse_i),  delta_i = dout_i . out_i
    ds_ij = weight_ij (dout_i . v_j - delta_i) s'_ij
    dv_j = sum_i weight_ij dout_i,  dk_j = scale sum_i ds_ij q_i,  dq_i = scale sum_j ds_ij k_j

with s' the slope of the score cap (arXiv:2205.14135). `query_kernel` owns a query tile; `kv_kernel` owns a
work item, a bounded piece of a key tile's queries, and `slots_kernel` adds the pieces in the order of their
slots. Scores are recomputed in both.

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
def delta_kernel(
    out_ptr,
    grad_ptr,
    delta_ptr,
    num_rows,
    num_heads,
    width,
    stride_os,
    stride_oh,
    stride_gs,
    stride_gh,
    BLOCK_M: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """delta [H, S] = sum_e out * dout, in float32. Grid: tiles of rows * H."""
    head = (tl.program_id(0) % num_heads).to(tl.int64)
    row = tl.program_id(0) // num_heads * BLOCK_M
    out_ptr += head * stride_oh
    grad_ptr += head * stride_gh
    out_me = load_rows(out_ptr, row, num_rows, stride_os, width, BLOCK_M, BLOCK_E, True, True).to(tl.float32)
    grad_me = load_rows(grad_ptr, row, num_rows, stride_gs, width, BLOCK_M, BLOCK_E, True, True)
    row_m = row + tl.arange(0, BLOCK_M)
    delta_m = tl.sum(out_me * grad_me.to(tl.float32), 1)
    tl.store(delta_ptr + head * num_rows + row_m, delta_m, mask=row_m < num_rows)


@triton.jit
def _query_grad(
    dq_me,
    q_me,
    grad_me,
    lse_m,
    delta_m,
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
    """Add what the key tiles `key_ptr[first:last]` give to dq / scale."""
    row_n = tile_row(key_ptr, first, last, BLOCK_N)
    for entry in range(first, last):
        next_row_n = tile_row(key_ptr, entry + 1, last, BLOCK_N)
        zero_mn = tl.zeros((q_me.shape[0], BLOCK_N), tl.float32)
        k_ne = load_rows(k_ptr, row_n, num_rows, stride_ks, width, BLOCK_N, BLOCK_E, MASKED, PADDED)
        score_mn, capped_mn = score(dot(q_me, tl.trans(k_ne), zero_mn, UPCAST), scale, softcap, CAPPED)
        weight_mn = tl.exp2(score_mn - lse_m[:, None])
        if MASKED:
            seen_mn = keys_seen(
                row_m, position_m, end_ptr, position_ptr, row_n, num_rows, window, BLOCK_N, WINDOWED
            )
            weight_mn = tl.where(seen_mn, weight_mn, 0.0)
        v_ne = load_rows(v_ptr, row_n, num_rows, stride_vs, width, BLOCK_N, BLOCK_E, MASKED, PADDED)
        ds_mn = weight_mn * (dot(grad_me, tl.trans(v_ne), zero_mn, UPCAST) - delta_m[:, None])
        if CAPPED:
            ds_mn *= 1.0 - capped_mn * capped_mn
        dq_me = dot(ds_mn.to(k_ne.dtype), k_ne, dq_me, UPCAST)
        row_n = next_row_n
    return dq_me


@triton.jit
def query_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    grad_ptr,
    lse_ptr,
    delta_ptr,
    dq_ptr,
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
    stride_gs,
    stride_gh,
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
    """dq [S, H, E]. Grid: M * H."""
    head = (tl.program_id(0) % num_heads).to(tl.int64)
    work_ptr += tl.program_id(0) // num_heads * 4
    tile, first, full, last = work_item(work_ptr)
    row = tile * BLOCK_M
    kv_head = head // group
    k_ptr += kv_head * stride_kh
    v_ptr += kv_head * stride_vh
    q_ptr += head * stride_qh
    grad_ptr += head * stride_gh

    row_m = row + tl.arange(0, BLOCK_M)
    position_m = load_column(position_ptr, row, num_rows, BLOCK_M) if WINDOWED else row_m
    q_me = load_rows(q_ptr, row, num_rows, stride_qs, width, BLOCK_M, BLOCK_E, True, PADDED)
    grad_me = load_rows(grad_ptr, row, num_rows, stride_gs, width, BLOCK_M, BLOCK_E, True, PADDED)
    lse_m = load_column(lse_ptr + head * num_rows, row, num_rows, BLOCK_M)
    delta_m = load_column(delta_ptr + head * num_rows, row, num_rows, BLOCK_M)
    dq_me = tl.zeros((BLOCK_M, BLOCK_E), tl.float32)
    for masked in tl.static_range(2):
        dq_me = _query_grad(
            dq_me,
            q_me,
            grad_me,
            lse_m,
            delta_m,
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
    dq_ptr += head * width
    store_rows(dq_ptr, dq_me * scale, row, num_rows, num_heads * width, width, BLOCK_M, BLOCK_E)
