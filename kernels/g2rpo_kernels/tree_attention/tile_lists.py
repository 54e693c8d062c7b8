"""Which tiles of the score matrix hold a visible pair: built once per micro-batch, shared by all layers.

Query tile m holds query rows [m * block_q, (m + 1) * block_q), key tile n likewise. The least and greatest
END of a key tile decide (the interval test of FlashMask, arXiv:2410.01359): the pair of tiles is *visited*
iff the first key <= the last query and greatest END > the first query, and *full* (no mask to apply) iff the
last key <= the first query and least END > the last query. A window adds the same test on path positions.

Everything is vectorised torch on END's device and waits for nothing: sizes are worst cases known from S.

Dimension key: S packed tree positions, M query tiles, N key tiles, L entries of a list (worst case), P and I
programs and work items, R rows of a tiled axis, C its other axis, B rows of a tile.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from g2rpo_kernels.tree_attention.tiles import Tile, Tiles


@dataclass(frozen=True, kw_only=True)
class QueryLists:
    """For each query tile the key tiles it visits. Example: query tiles of two rows, key tiles of one, a root
    of two rows and two leaves of one (END = 4 4 3 4): rows 2 and 3 see keys 0 and 1 in full, 2 and 3 in part;
    rows 0 and 1 see key 0 in full, 1 in part.

    work_P4 = (1, 2, 2, 4), (0, 0, 1, 2);  key_L = 0 1, 0 1 2 3
    """

    work_P4: Tensor
    """int32 [M, 4], heaviest first: query tile, its first entry in `key_L`, full entries, entries."""
    key_L: Tensor
    """int32: key tiles, each query tile's full ones first, then its masked ones, each ascending."""


@dataclass(frozen=True, kw_only=True)
class KvLists:
    """For each key tile the query tiles that visit it, cut into work items of bounded size."""

    work_I5: Tensor
    """int32 [I, 5], heaviest first: key tile (-1: nothing to do), first entry in `query_L`, full entries,
    entries, and the slot that takes the item's partial sums (-1: the tile's only item writes the result)."""
    query_L: Tensor
    """int32: query tiles, each key tile's full ones first, then its masked ones, each ascending."""
    slot_N2: Tensor
    """int32 [N, 2]: first slot and number of slots of each key tile (none where one item does it all)."""
    num_slots: int
    """An upper bound on the slots in use."""


@dataclass(frozen=True, kw_only=True)
class TileLists:
    """What the three launches of one layer walk over."""

    forward: QueryLists
    query_grad: QueryLists
    kv_grad: KvLists


class TilePlan:
    """The tile lists of one END mask: built on first use for each (tile shape, window), then shared.

    Made by `tile_plan`; belongs to one micro-batch. Reads nothing back from the device.
    """

    def __init__(self, end_S: Tensor, position_S: Tensor | None) -> None:
        self.end_S = end_S.to(torch.int32).contiguous()
        self.position_S = None if position_S is None else position_S.to(torch.int32).contiguous()
        self._lists: dict[tuple[int, ...], TileLists] = {}

    @property
    def num_rows(self) -> int:
        return len(self.end_S)

    @property
    def device(self) -> torch.device:
        return self.end_S.device

    def lists(self, tiles: Tiles, *, heads: int, kv_heads: int, window: int | None) -> TileLists:
        """The lists for one layer: its tile shapes, its heads, its window (None: all of a path)."""
        shapes = (tiles.forward, tiles.query_grad, tiles.kv_grad)
        blocks = (size for tile in shapes for size in (tile.block_q, tile.block_kv))
        key = (*blocks, tiles.item_pairs, tiles.num_items, heads, kv_heads, -1 if window is None else window)
        if key not in self._lists:
            self._lists[key] = self._build(tiles, heads // kv_heads, kv_heads, window)
        return self._lists[key]

    def _build(self, tiles: Tiles, group: int, kv_heads: int, window: int | None) -> TileLists:
        grids: dict[tuple[int, int], _Grid] = {}
        for tile in (tiles.forward, tiles.query_grad, tiles.kv_grad):
            shape = tile.block_q, tile.block_kv
            if shape not in grids:
                grids[shape] = _grid(self.end_S, self.position_S, window, tile)
        forward, query_grad, kv_grad = (
            grids[tile.block_q, tile.block_kv] for tile in (tiles.forward, tiles.query_grad, tiles.kv_grad)
        )
        forward_lists = _query_lists(forward)
        same = query_grad is forward
        return TileLists(
            forward=forward_lists,
            query_grad=forward_lists if same else _query_lists(query_grad),
            kv_grad=_kv_lists(
                kv_grad, least=-(-tiles.item_pairs // group), most=-(-tiles.num_items // kv_heads)
            ),
        )


def tile_plan(end_S: Tensor, position_S: Tensor | None = None) -> TilePlan:
    """The plan for `end_S` [S] and, for layers with a window, path positions [S]; integers on one device.

    END is trusted to describe a tree (`cascade_plan` checks one): checking would wait for the device.
    """
    return TilePlan(end_S, position_S)


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
    causal_M = (np.arange(1, num_q + 1) * tile.block_q - 1) // tile.block_kv + 1
    return _Grid(
        visited_MN=visited_MN,
        full_MN=full_MN & visited_MN,
        num_pairs=int(np.minimum(causal_M, num_kv).sum()),
    )


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
    """Each row's visited columns, full ones first. Scatters to places found by running sums: `nonzero` would
    have to tell the host how many there are."""
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
    return _Rows(first_R=first_R, full_R=full_R, count_R=count_R, entry_L=entry_L)


def _query_lists(grid: _Grid) -> QueryLists:
    rows = _rows(grid.visited_MN, grid.full_MN, grid.num_pairs)
    order_P = rows.count_R.argsort(descending=True, stable=True)
    columns = (order_P, *(x_R[order_P] for x_R in (rows.first_R, rows.full_R, rows.count_R)))
    return QueryLists(work_P4=torch.stack(columns, dim=1).int(), key_L=rows.entry_L)


def _kv_lists(grid: _Grid, *, least: int, most: int) -> KvLists:
    """Items of at least `least` query tiles (where a key tile has as many), and at most N + `most` items.

    A tile's entries are cut into equal items of at most max(least, visited pairs / most) entries: no item
    does more than one part in `most` of the work, however long the prefix.
    """
    rows = _rows(grid.visited_MN.T, grid.full_MN.T, grid.num_pairs)
    num_kv, device = len(rows.count_R), rows.count_R.device
    most = min(most, -(-grid.num_pairs // least))
    bound = (-(-rows.count_R.sum() // most)).clamp(min=least)
    items_N = (-(-rows.count_R // bound)).clamp(min=1)
    size_N = -(-rows.count_R // items_N)
    slots_N = items_N.where(items_N > 1, 0)
    first_slot_N = slots_N.cumsum(0) - slots_N
    end_N = items_N.cumsum(0)
    item_I = torch.arange(num_kv + most, device=device)
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
        num_slots=2 * most,
    )
