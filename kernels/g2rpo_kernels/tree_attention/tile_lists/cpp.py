"""Tile lists in C++ (csrc/kernels/tile_lists.h) from an END on the host, in one buffer for any device.

Entry for entry those of `pytorch`, without its dense grids: the query tiles that visit a key tile
are contiguous, but for a window.

Dimension key: S packed tree positions, X numbers of all lists, end to end.
"""

from __future__ import annotations

import math
from types import ModuleType

import torch
from torch import Tensor

from g2rpo_kernels.tree_attention.tile_lists.records import Cut, KvLists, QueryLists, TileLists, most_pairs
from g2rpo_kernels.tree_attention.tiles import Tile, Tiles

Shape = tuple[int, ...]

ALIGNED = 4
"""Each list begins at a multiple of 16 bytes: Triton compiles another kernel for one that does not."""


def cpp_lists(
    native: ModuleType,
    end_S: Tensor,
    position_S: Tensor | None,
    tiles: Tiles,
    *,
    cut: Cut,
    window: int | None,
    device: torch.device,
) -> TileLists:
    """The lists for `end_S` and, with a window, `position_S`: int32 [S] on the CPU.

    One copy takes them to `device`: to CUDA from pinned memory, and nothing waits for it.
    Raises ValueError for positions of another length, and for more pairs of tiles than int32 can number.
    """
    size = len(end_S)
    same = tiles.query_grad.shape == tiles.forward.shape
    query_tiles = (tiles.forward,) if same else (tiles.forward, tiles.query_grad)
    shapes = [shape for tile in query_tiles for shape in _query_shapes(size, tile)]
    shapes += _kv_shapes(size, tiles.kv_grad, cut)
    length = sum(_padded(shape) for shape in shapes)
    held_X = torch.empty(length, dtype=torch.int32, pin_memory=device.type == "cuda")

    arrays = _views(held_X, shapes)
    problem = (end_S, None, 0) if window is None else (end_S, position_S, window)
    for i, tile in enumerate(query_tiles):
        native.query_lists(*problem, *tile.shape, *arrays[2 * i : 2 * i + 2])
    native.kv_lists(*problem, *tiles.kv_grad.shape, cut.least, cut.most, *arrays[-3:])

    views = _views(held_X.to(device, non_blocking=True), shapes)
    forward, *query_grad = [
        QueryLists(work_P4=work_P4, key_L=key_L)
        for work_P4, key_L in zip(views[:-3:2], views[1:-3:2], strict=True)
    ]
    work_I5, query_L, slot_N2 = views[-3:]
    return TileLists(
        forward=forward,
        query_grad=forward if same else query_grad[0],
        kv_grad=KvLists(work_I5=work_I5, query_L=query_L, slot_N2=slot_N2, num_slots=cut.num_slots),
    )


def _query_shapes(size: int, tile: Tile) -> list[Shape]:
    return [(-(-size // tile.block_q), 4), (most_pairs(size, tile),)]


def _kv_shapes(size: int, tile: Tile, cut: Cut) -> list[Shape]:
    num_kv = -(-size // tile.block_kv)
    return [(num_kv + cut.most, 5), (most_pairs(size, tile),), (num_kv, 2)]


def _padded(shape: Shape) -> int:
    return -(-math.prod(shape) // ALIGNED) * ALIGNED


def _views(packed_X: Tensor, shapes: list[Shape]) -> list[Tensor]:
    parts = packed_X.split([_padded(shape) for shape in shapes])
    return [part_X[: math.prod(shape)].view(shape) for part_X, shape in zip(parts, shapes, strict=True)]
