"""Gradients of keys and values: `kv_kernel` and `slots_kernel`; equations in `backward`.

The rows that see a key tile are one interval of the stream, so a program that owns the tile adds them up in
registers, over all query heads that share the keys. A prefix is seen by everybody: its tiles are cut into
work items of bounded size whose float32 sums go to slots, added afterwards in the order of the slots.

Tile suffixes: m query rows, n key rows, e head width. Scores are held transposed, [n, m], so that weights and
ds are the left operands of the products that add up dv and dk.
"""

# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

from g2rpo_kernels.tree_attention.triton.device_functions import (
    dot,
    load_column,
    load_rows,
    score,
    store_rows,
    tile_row,
    visible,
    work_item,
)


@triton.jit
def _kv_grad(
    dk_ne,
    dv_ne,
    k_ne,
    v_ne,
    q_ptr,
    grad_ptr,
    lse_ptr,
    delta_ptr,
    position_ptr,
    query_ptr,
    first,
    last,
    group,
    row_n,
    end_n,
    position_n,
    num_rows,
    width,
    stride_qs,
    stride_qh,
    stride_gs,
    stride_gh,
    scale,
    window,
    softcap,
    BLOCK_M: tl.constexpr,
    BLOCK_E: tl.constexpr,
    MASKED: tl.constexpr,
    WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr,
    PADDED: tl.constexpr,
    WANT_DK: tl.constexpr,
    WANT_DV: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Add what the query tiles `query_ptr[first:last]` of `group` heads give to dk / scale and dv."""
    row = tile_row(query_ptr, first, last, BLOCK_M)
    for step in range((last - first) * group):
        next_row = tile_row(query_ptr, first + (step + 1) // group, last, BLOCK_M)
        head = (step % group).to(tl.int64)
        zero_nm = tl.zeros((k_ne.shape[0], BLOCK_M), tl.float32)
        q_me = load_rows(
            q_ptr + head * stride_qh, row, num_rows, stride_qs, width, BLOCK_M, BLOCK_E, MASKED, PADDED
        )
        lse_m = load_column(lse_ptr + head * num_rows, row, num_rows, BLOCK_M)
        score_nm, capped_nm = score(dot(k_ne, tl.trans(q_me), zero_nm, UPCAST), scale, softcap, CAPPED)
        weight_nm = tl.exp2(score_nm - lse_m[None, :])
        if MASKED:
            row_m = row + tl.arange(0, BLOCK_M)
            position_m = load_column(position_ptr, row, num_rows, BLOCK_M) if WINDOWED else row_m
            seen_nm = visible(
                row_m[None, :],
                row_n[:, None],
                end_n[:, None],
                position_m[None, :],
                position_n[:, None],
                window,
                WINDOWED,
            )
            weight_nm = tl.where(seen_nm, weight_nm, 0.0)
        grad_me = load_rows(
            grad_ptr + head * stride_gh, row, num_rows, stride_gs, width, BLOCK_M, BLOCK_E, MASKED, PADDED
        )
        if WANT_DV:
            dv_ne = dot(weight_nm.to(grad_me.dtype), grad_me, dv_ne, UPCAST)
        if WANT_DK:
            delta_m = load_column(delta_ptr + head * num_rows, row, num_rows, BLOCK_M)
            ds_nm = weight_nm * (dot(v_ne, tl.trans(grad_me), zero_nm, UPCAST) - delta_m[None, :])
            if CAPPED:
                ds_nm *= 1.0 - capped_nm * capped_nm
            dk_ne = dot(ds_nm.to(q_me.dtype), q_me, dk_ne, UPCAST)
        row = next_row
    return dk_ne, dv_ne


@triton.jit
def kv_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    grad_ptr,
    lse_ptr,
    delta_ptr,
    dk_ptr,
    dv_ptr,
    dk_slot_ptr,
    dv_slot_ptr,
    end_ptr,
    position_ptr,
    work_ptr,
    query_ptr,
    num_rows,
    num_kv_heads,
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
    WANT_DK: tl.constexpr,
    WANT_DV: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """dk, dv [S, K, E], or their partial sums [slots, K, BLOCK_N, E] in float32. Grid: I * K."""
    kv_head = (tl.program_id(0) % num_kv_heads).to(tl.int64)
    work_ptr += tl.program_id(0) // num_kv_heads * 5
    tile, first, full, last = work_item(work_ptr)
    if tile < 0:
        return
    slot = tl.load(work_ptr + 4).to(tl.int64)
    row = tile * BLOCK_N
    head = kv_head * group
    q_ptr += head * stride_qh
    grad_ptr += head * stride_gh
    lse_ptr += head * num_rows
    delta_ptr += head * num_rows

    row_n = row + tl.arange(0, BLOCK_N)
    end_n = load_column(end_ptr, row, num_rows, BLOCK_N)
    position_n = load_column(position_ptr, row, num_rows, BLOCK_N) if WINDOWED else end_n
    k_ptr += kv_head * stride_kh
    k_ne = load_rows(k_ptr, row, num_rows, stride_ks, width, BLOCK_N, BLOCK_E, True, PADDED)
    v_ne = k_ne
    if WANT_DK:
        v_ptr += kv_head * stride_vh
        v_ne = load_rows(v_ptr, row, num_rows, stride_vs, width, BLOCK_N, BLOCK_E, True, PADDED)
    dk_ne = tl.zeros((BLOCK_N, BLOCK_E), tl.float32)
    dv_ne = tl.zeros((BLOCK_N, BLOCK_E), tl.float32)
    for masked in tl.static_range(2):
        dk_ne, dv_ne = _kv_grad(
            dk_ne,
            dv_ne,
            k_ne,
            v_ne,
            q_ptr,
            grad_ptr,
            lse_ptr,
            delta_ptr,
            position_ptr,
            query_ptr,
            full if masked else first,
            last if masked else full,
            group,
            row_n,
            end_n,
            position_n,
            num_rows,
            width,
            stride_qs,
            stride_qh,
            stride_gs,
            stride_gh,
            scale,
            window,
            softcap,
            BLOCK_M,
            BLOCK_E,
            masked == 1,
            WINDOWED,
            CAPPED,
            PADDED,
            WANT_DK,
            WANT_DV,
            UPCAST,
        )
    if WANT_DK:
        dk_ne *= scale
        _store(
            dk_ptr, dk_slot_ptr, dk_ne, slot, row, kv_head, num_rows, num_kv_heads, width, BLOCK_N, BLOCK_E
        )
    if WANT_DV:
        _store(
            dv_ptr, dv_slot_ptr, dv_ne, slot, row, kv_head, num_rows, num_kv_heads, width, BLOCK_N, BLOCK_E
        )


@triton.jit
def _store(
    x_ptr,
    slot_ptr,
    x_ne,
    slot,
    row,
    kv_head,
    num_rows,
    num_kv_heads,
    width,
    BLOCK_N: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """To the result [S, K, E], or to a slot [K, BLOCK_N, E] of the partial sums."""
    if slot < 0:
        x_ptr += kv_head * width
        store_rows(x_ptr, x_ne, row, num_rows, num_kv_heads * width, width, BLOCK_N, BLOCK_E)
    else:
        slot_ptr += (slot * num_kv_heads + kv_head) * BLOCK_N * width
        store_rows(slot_ptr, x_ne, 0, BLOCK_N, width, width, BLOCK_N, BLOCK_E)


@triton.jit
def slots_kernel(
    dk_ptr,
    dv_ptr,
    dk_slot_ptr,
    dv_slot_ptr,
    slot_ptr,
    num_rows,
    num_kv_heads,
    width,
    BLOCK_N: tl.constexpr,
    BLOCK_X: tl.constexpr,
):
    """Add up each key tile's slots, BLOCK_X numbers a program. Grid: pieces of a tile * N * K."""
    kv_head = (tl.program_id(0) % num_kv_heads).to(tl.int64)
    tile = tl.program_id(0) // num_kv_heads % tl.cdiv(num_rows, BLOCK_N)
    piece = tl.program_id(0) // num_kv_heads // tl.cdiv(num_rows, BLOCK_N)
    first = tl.load(slot_ptr + tile * 2).to(tl.int64)
    num_slots = tl.load(slot_ptr + tile * 2 + 1)
    if num_slots == 0:
        return
    offs_x = piece * BLOCK_X + tl.arange(0, BLOCK_X)
    row_x = (tile * BLOCK_N + offs_x // width).to(tl.int64)
    mask_x = (offs_x < BLOCK_N * width) & (row_x < num_rows)
    dk_x = tl.zeros((BLOCK_X,), tl.float32)
    dv_x = tl.zeros((BLOCK_X,), tl.float32)
    for slot in range(num_slots):
        at_x = ((first + slot) * num_kv_heads + kv_head) * BLOCK_N * width + offs_x
        dk_x += tl.load(dk_slot_ptr + at_x, mask=mask_x, other=0.0)
        dv_x += tl.load(dv_slot_ptr + at_x, mask=mask_x, other=0.0)
    to_x = (row_x * num_kv_heads + kv_head) * width + offs_x % width
    tl.store(dk_ptr + to_x, dk_x.to(dk_ptr.dtype.element_ty), mask=mask_x)
    tl.store(dv_ptr + to_x, dv_x.to(dv_ptr.dtype.element_ty), mask=mask_x)
