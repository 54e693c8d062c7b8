"""Tile shapes of the Triton kernels: static tables, so that ranks and runs agree bit for bit.

Dimension key: E head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One launch: rows of the score tile, and how the compiler schedules it."""

    block_q: int
    block_kv: int
    warps: int
    stages: int = 3
    """Buffers of what the loop loads. With three, two iterations' loads are under way during a third's
    products; with two, Triton waits for every load, and the assembler puts Hopper's products one after the
    other (warning C7515)."""
    stack_bytes: int = 0
    """The most stack that it compiles to, whatever the window and the softcap, with Triton 3.7; 32 bytes more
    with 3.6 to 3.9 (tests/kernels/test_compile_tree_attention.py). Not 0: other shapes are no better."""

    @property
    def shape(self) -> tuple[int, int]:
        return self.block_q, self.block_kv


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """The launches of one (chip, head width)."""

    forward: Tile
    query_grad: Tile
    kv_grad: Tile
    split_kv_grad: bool = False
    """dV and dK in launches of their own, where both accumulators together do not fit the registers."""
    item_pairs: int = 32
    """The least (query tile, query head) pairs in a work item of the key and value gradients: below it, its
    partial sums cost more than the balance they buy."""
    num_items: int = 1024
    """Work items, over all key/value heads, that split tiles are divided into: a few per multiprocessor."""


MAX_WIDTH = 256

HALF: dict[tuple[str, int], Tiles] = {
    ("sm_80", 64): Tiles(
        forward=Tile(block_q=128, block_kv=128, warps=8),
        query_grad=Tile(block_q=64, block_kv=64, warps=4),
        kv_grad=Tile(block_q=64, block_kv=64, warps=8),
    ),
    ("sm_80", 128): Tiles(
        forward=Tile(block_q=128, block_kv=64, warps=8),
        query_grad=Tile(block_q=64, block_kv=64, warps=8),
        kv_grad=Tile(block_q=64, block_kv=64, warps=8),
    ),
    ("sm_80", 256): Tiles(
        forward=Tile(block_q=64, block_kv=32, warps=8),
        query_grad=Tile(block_q=64, block_kv=32, warps=8),
        kv_grad=Tile(block_q=32, block_kv=64, warps=8),
        split_kv_grad=True,
    ),
    ("sm_86", 128): Tiles(  # 99 KB of shared memory
        forward=Tile(block_q=128, block_kv=64, warps=8),
        query_grad=Tile(block_q=64, block_kv=64, warps=8, stages=2),
        kv_grad=Tile(block_q=64, block_kv=64, warps=8, stages=2),
    ),
    ("sm_86", 256): Tiles(
        forward=Tile(block_q=64, block_kv=32, warps=8, stages=2),
        query_grad=Tile(block_q=64, block_kv=32, warps=8, stages=1),
        kv_grad=Tile(block_q=32, block_kv=64, warps=8, stages=1),
        split_kv_grad=True,
    ),
    ("sm_90", 64): Tiles(
        forward=Tile(block_q=128, block_kv=128, warps=8),
        query_grad=Tile(block_q=128, block_kv=64, warps=8),
        kv_grad=Tile(block_q=64, block_kv=128, warps=8),
    ),
    ("sm_90", 128): Tiles(  # measured on an H100: two programs a processor for forward, and the kv_grad that
        # is twice as fast as the one whose accumulators leave room for the registers
        forward=Tile(block_q=64, block_kv=64, warps=4),
        query_grad=Tile(block_q=128, block_kv=64, warps=8),
        kv_grad=Tile(block_q=64, block_kv=128, warps=8, stack_bytes=184),
    ),
    ("sm_90", 256): Tiles(
        forward=Tile(block_q=128, block_kv=32, warps=8),
        query_grad=Tile(block_q=64, block_kv=32, warps=8),
        kv_grad=Tile(block_q=32, block_kv=64, warps=8),
        split_kv_grad=True,
    ),
    ("sm_100", 64): Tiles(
        forward=Tile(block_q=128, block_kv=128, warps=8),
        query_grad=Tile(block_q=64, block_kv=64, warps=4),
        kv_grad=Tile(block_q=64, block_kv=128, warps=8),
    ),
    ("sm_100", 128): Tiles(
        forward=Tile(block_q=128, block_kv=64, warps=8),
        query_grad=Tile(block_q=128, block_kv=64, warps=8),
        kv_grad=Tile(block_q=64, block_kv=128, warps=8),
    ),
    ("sm_100", 256): Tiles(
        forward=Tile(block_q=128, block_kv=32, warps=8),
        query_grad=Tile(block_q=64, block_kv=32, warps=4),
        kv_grad=Tile(block_q=64, block_kv=64, warps=8, stages=2),
        split_kv_grad=True,
    ),
}
"""bfloat16 and float16, by (chip, head width padded up). "sm_86" differs from "sm_80" where the shared memory
asks for it."""

SINGLE: dict[int, Tiles] = {
    64: Tiles(
        forward=Tile(block_q=32, block_kv=32, warps=8, stages=1),
        query_grad=Tile(block_q=32, block_kv=32, warps=8, stages=1),
        kv_grad=Tile(block_q=32, block_kv=32, warps=8, stages=1),
    ),
    128: Tiles(
        forward=Tile(block_q=16, block_kv=16, warps=8, stages=1),
        query_grad=Tile(block_q=16, block_kv=16, warps=8, stages=1),
        kv_grad=Tile(block_q=16, block_kv=16, warps=8, stages=1),
    ),
    256: Tiles(
        forward=Tile(block_q=16, block_kv=16, warps=8, stages=1),
        query_grad=Tile(block_q=16, block_kv=16, warps=8, stages=1, stack_bytes=176),
        kv_grad=Tile(block_q=16, block_kv=16, warps=8, stages=1, stack_bytes=152),
        split_kv_grad=True,
    ),
}
"""float32, by head width padded up: products in full float32, without tensor cores, on any chip. A thread
holds whole rows of its operands: two products of 256 columns do not fit."""

CHIPS: dict[tuple[int, int], str] = {
    (8, 0): "sm_80",
    (8, 6): "sm_86",
    (8, 9): "sm_86",
    (12, 0): "sm_86",
    (9, 0): "sm_90",
    (10, 0): "sm_100",
    (10, 3): "sm_100",
}
"""Compute capability -> chip in the table."""


def width_class(width: int) -> int:
    """The table's column for a head of `width`, at most `MAX_WIDTH`."""
    return next(wide for wide in (64, 128, 256) if width <= wide)


def tiles_for(chip: str, dtype: torch.dtype, width: int) -> Tiles:
    """The table's entry for heads of `width` in `dtype` on a chip of `CHIPS`."""
    if dtype == torch.float32:
        return SINGLE[width_class(width)]
    wide = width_class(width)
    return HALF[chip, wide] if (chip, wide) in HALF else HALF["sm_80", wide]
