"""Tile lists in vectorised torch, on END's device: the definition, and what builds them from an END on a GPU.

Query tile m holds query rows [m * block_q, (m + 1) * block_q), key tile n likewise. The least and greatest
END of a key tile decide (the interval test of FlashMask, arXiv:2410.01359): the pair of tiles is *visited*
iff the first key <= the last query and greatest END > the first query, and *full* (no mask to apply) iff the
last key <= the first query and least END > the last query. A window adds the same test on path positions.

Waits for nothing: sizes are worst cases known from S.

Dimension key: S packed tree positions, M query tiles, N key tiles, L entries of a list (worst case), P and I
programs and work items, R rows of a tiled axis, C its other axis, B rows of a tile.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from g2rpo_kernels.tree_attention.tile_lists.records import Cut, KvLists, QueryLists, TileLists, most_pairs
from g2rpo_kernels.tree_attention.tiles import Tile, Tiles


def torch_lists(
    end_S: Tensor, position_S: Tensor | None, tiles: Tiles, *, cut: Cut, window: int | None
) -> TileLists:
    """The lists for `end_S` and, with a window, `position_S`: int32 [S] on one device."""
    grids: dict[tuple[int, int], _Grid] = {}
    for tile in (tiles.forward, tiles.query_grad, tiles.kv_grad):
        if tile.shape not in grids:
            grids[tile.shape] = _grid(end_S, position_S, window, tile)
    forward = _query_lists(grids[tiles.forward.shape])
    same = tiles.query_grad.shape == tiles.forward.shape
    return TileLists(
        forward=forward,
        query_grad=forward if same else _query_lists(grids[tiles.query_grad.shape]),
        kv_grad=_kv_lists(grids[tiles.kv_grad.shape], cut),
    )


@dataclass(frozen=True, kw_only=True)
class _Grid:
    """Pairs of tiles."""

    visited_MN: Tensor
    full_MN: Tensor
    num_pairs: int
    """The most that any tree of this S can visit."""


def _grid(end_S: Tensor, position_S: Tensor | None, window: int | None, tile: Tile) -> _Grid:
    size, device = len(end_S), end_S.device
    num_q, num_kv = -(-size // tile.block_q), -(-size // tile.block_kv)
    first_M1 = torch.arange(num_q, device=device)[:, None] * tile.block_q
    first_N = torch.arange(num_kv, device=device) * tile.block_kv
    last_M1, last_N = first_M1 + (tile.block_q - 1), first_N + (tile.block_kv - 1)
    least_N, greatest_N = _tiled(end_S, num_kv, tile.block_kv)
    # The last tile of an axis may reach past S: such a pair is never full, since last_N >= S > first_M, or
    # least_N <= S <= last_M.
    visited_MN = (first_N <= last_M1) & (greatest_N > first_M1)
    full_MN = (last_N <= first_M1) & (least_N > last_M1)
    if window is not None:
        assert position_S is not None
        nearest_M, farthest_M = _tiled(position_S, num_q, tile.block_q)
        least_N, greatest_N = _tiled(position_S, num_kv, tile.block_kv)
        visited_MN &= nearest_M[:, None] - greatest_N < window
        full_MN &= farthest_M[:, None] - least_N < window
    return _Grid(visited_MN=visited_MN, full_MN=full_MN & visited_MN, num_pairs=most_pairs(size, tile))


def _tiled(x_S: Tensor, num_tiles: int, block: int) -> tuple[Tensor, Tensor]:
    """Least and greatest of each tile."""
    row = torch.arange(num_tiles * block, device=x_S.device).clamp_(max=len(x_S) - 1)
    least_N, greatest_N = x_S[row].view(num_tiles, block).aminmax(dim=1)
    return least_N, greatest_N


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """A compressed list of lists."""

    first_R: Tensor
    full_R: Tensor
    count_R: Tensor
    entry_L: Tensor


def _rows(visited_RC: Tensor, full_RC: Tensor, num_pairs: int) -> _Rows:
    """Each row's visited columns, full ones first. Scatters to places found by running sums, columns that are
    not visited to one place too many: `nonzero` would have to tell the host how many there are."""
    full_R, count_R = full_RC.sum(1), visited_RC.sum(1)
    first_R = count_R.cumsum(0) - count_R
    place_RC = torch.where(
        full_RC,
        full_RC.cumsum(1, dtype=torch.int32) + (first_R[:, None] - 1),
        (visited_RC & ~full_RC).cumsum(1, dtype=torch.int32) + (first_R + full_R - 1)[:, None],
    ).where(visited_RC, num_pairs)
    column_C = torch.arange(visited_RC.shape[1], dtype=torch.int32, device=visited_RC.device)
    entry_L = torch.zeros(num_pairs + 1, dtype=torch.int32, device=visited_RC.device)
    entry_L.scatter_(0, place_RC.flatten(), column_C.expand(visited_RC.shape).flatten())
    return _Rows(first_R=first_R, full_R=full_R, count_R=count_R, entry_L=entry_L[:-1])


def _query_lists(grid: _Grid) -> QueryLists:
    rows = _rows(grid.visited_MN, grid.full_MN, grid.num_pairs)
    order_P = rows.count_R.argsort(descending=True, stable=True)
    columns = (order_P, *(x_R[order_P] for x_R in (rows.first_R, rows.full_R, rows.count_R)))
    return QueryLists(work_P4=torch.stack(columns, dim=1).int(), key_L=rows.entry_L)


def _kv_lists(grid: _Grid, cut: Cut) -> KvLists:
    """A tile's entries are cut into equal items of at most max(least, visited pairs / most) entries: no item
    does more than one part in `most` of the work, however long the prefix."""
    rows = _rows(grid.visited_MN.T, grid.full_MN.T, grid.num_pairs)
    num_kv, device = len(rows.count_R), rows.count_R.device
    bound = (-(-rows.count_R.sum() // cut.most)).clamp(min=cut.least)
    items_N = (-(-rows.count_R // bound)).clamp(min=1)
    size_N = -(-rows.count_R // items_N)
    slots_N = items_N.where(items_N > 1, 0)
    first_slot_N = slots_N.cumsum(0) - slots_N
    end_N = items_N.cumsum(0)
    item_I = torch.arange(num_kv + cut.most, device=device)
    tile_I = torch.searchsorted(end_N, item_I, right=True)
    used_I = tile_I < num_kv
    tile_I.clamp_(max=num_kv - 1)
    within_I = item_I - (end_N - items_N)[tile_I]
    begin_I = within_I * size_N[tile_I]
    count_I = (rows.count_R[tile_I] - begin_I).minimum(size_N[tile_I]).clamp(min=0)
    full_I = (rows.full_R[tile_I] - begin_I).clamp(min=0).minimum(count_I)
    slot_I = (first_slot_N[tile_I] + within_I).where(slots_N[tile_I] > 0, -1)
    columns = (tile_I.where(used_I, -1), rows.first_R[tile_I] + begin_I, full_I, count_I, slot_I)
    order_I = count_I.where(used_I, -1).argsort(descending=True, stable=True)
    return KvLists(
        work_I5=torch.stack(columns, dim=1)[order_I].int(),
        query_L=rows.entry_L,
        slot_N2=torch.stack((first_slot_N, slots_N), dim=1).int(),
        num_slots=cut.num_slots,
    )
