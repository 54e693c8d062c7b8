"""What the tree attention kernels share on the device: loads, products, scores and the mask of one tile.

Scores and their log-sum-exp are kept in units of log 2, so that weights are exp2(score - lse) with nothing
rounded between the two: score = cap(scale * q . k) / log 2.

Tile suffixes: m query rows, n key rows, e head width.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def load_rows(
    x_ptr,
    row,
    num_rows,
    stride_s,
    width,
    BLOCK_S: tl.constexpr,
    BLOCK_E: tl.constexpr,
    RAGGED: tl.constexpr,
    PADDED: tl.constexpr,
):
    """[BLOCK_S, BLOCK_E] from `row` on; zero past `num_rows` (if RAGGED) and past `width` (if PADDED)."""
    offs_s = tl.arange(0, BLOCK_S)[:, None]
    offs_e = tl.arange(0, BLOCK_E)[None, :]
    ptr = x_ptr + (row + offs_s).to(tl.int64) * stride_s + offs_e
    if RAGGED and PADDED:
        return tl.load(ptr, mask=(offs_s < num_rows - row) & (offs_e < width), other=0.0)
    if RAGGED:
        return tl.load(ptr, mask=offs_s < num_rows - row, other=0.0)
    if PADDED:
        return tl.load(ptr, mask=offs_e < width, other=0.0)
    return tl.load(ptr)


@triton.jit
def store_rows(x_ptr, x_se, row, num_rows, stride_s, width, BLOCK_S: tl.constexpr, BLOCK_E: tl.constexpr):
    """Write what of `x_se` lies inside `num_rows` and `width`, in the pointer's dtype."""
    offs_s = tl.arange(0, BLOCK_S)[:, None]
    offs_e = tl.arange(0, BLOCK_E)[None, :]
    ptr = x_ptr + (row + offs_s).to(tl.int64) * stride_s + offs_e
    tl.store(ptr, x_se.to(x_ptr.dtype.element_ty), mask=(offs_s < num_rows - row) & (offs_e < width))


@triton.jit
def load_column(x_ptr, row, num_rows, BLOCK_S: tl.constexpr):
    """[BLOCK_S] numbers from `row` on; zero past `num_rows`."""
    offs_s = row + tl.arange(0, BLOCK_S)
    return tl.load(x_ptr + offs_s, mask=offs_s < num_rows, other=0)


@triton.jit
def dot(a, b, acc, UPCAST: tl.constexpr):
    """acc + a @ b in float32. UPCAST: operands become float32 first (the interpreter has no bfloat16)."""
    if UPCAST:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def tanh(x):
    """tanh to float32's last digits: 1 - 2 / (exp(2 |x|) + 1), and its Taylor series where that cancels."""
    size = tl.abs(x)
    far = 1.0 - 2.0 / (tl.exp2(size * (2.0 * LOG2_E)) + 1.0)
    y = x * x
    near = size * (1.0 + y * (-1 / 3 + y * (2 / 15 + y * (-17 / 315 + y * (62 / 2835)))))
    size = tl.where(size < 0.25, near, far)
    return tl.where(x < 0, -size, size)


@triton.jit
def score(product, scale, softcap, CAPPED: tl.constexpr):
    """Scores in units of log 2 from q . k, and t = tanh(.) of the cap, whose slope is 1 - t ** 2."""
    if CAPPED:
        capped = tanh(product * (scale / softcap))
        return capped * (softcap * LOG2_E), capped
    return product * (scale * LOG2_E), product


@triton.jit
def work_item(work_ptr):
    """(tile, first, full, last): its list entries first:full are seen whole, full:last through a mask."""
    first = tl.load(work_ptr + 1)
    return tl.load(work_ptr), first, first + tl.load(work_ptr + 2), first + tl.load(work_ptr + 3)


@triton.jit
def tile_row(list_ptr, entry, last, BLOCK_S: tl.constexpr):
    """First row of the tile that a list names at `entry`; 0 from `last` on.

    Loops read it one entry ahead and carry it: a load whose address was loaded in the same iteration is not
    prefetched, whatever the number of stages.
    """
    return tl.load(list_ptr + entry, mask=entry < last, other=0) * BLOCK_S


@triton.jit
def keys_seen(
    row_m,
    position_m,
    end_ptr,
    position_ptr,
    row,
    num_rows,
    window,
    BLOCK_N: tl.constexpr,
    WINDOWED: tl.constexpr,
):
    """[m, n]: which of the BLOCK_N keys from `row` on the queries see."""
    end_n = load_column(end_ptr, row, num_rows, BLOCK_N)
    position_n = load_column(position_ptr, row, num_rows, BLOCK_N) if WINDOWED else end_n
    row_n = row + tl.arange(0, BLOCK_N)
    return visible(
        row_m[:, None],
        row_n[None, :],
        end_n[None, :],
        position_m[:, None],
        position_n[None, :],
        window,
        WINDOWED,
    )


@triton.jit
def visible(row_q, row_k, end_k, position_q, position_k, window, WINDOWED: tl.constexpr):
    """May the query see the key? Arguments broadcast against each other."""
    seen = (row_k <= row_q) & (row_q < end_k)
    if WINDOWED:
        seen = seen & (position_q - position_k < window)
    return seen
