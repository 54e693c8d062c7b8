"""The records of tree attention's tile lists, and the sizes that any tree of S rows fits in.

Dimension key: M query tiles, N key tiles, L entries of a list (worst case), P and I programs and work items.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

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


def most_pairs(size: int, tile: Tile) -> int:
    """The most pairs of tiles that any tree of `size` rows can visit: those not above the diagonal."""
    num_q, num_kv = -(-size // tile.block_q), -(-size // tile.block_kv)
    return _sum_of_ceilings(num_q - 1, tile.block_q, tile.block_kv) + num_kv if num_q else 0


def _sum_of_ceilings(count: int, a: int, b: int) -> int:
    """The sum of ceil(i a / b) for i from 1 to `count`: of whole periods, in which the ceilings grow by the
    same number, and of what is left of one."""
    period = b // math.gcd(a, b)
    full, rest = divmod(count, period)
    growth = a * period // b
    ceilings = [-(-i * a // b) for i in range(1, period + 1)]
    whole = full * sum(ceilings) + growth * period * (full * (full - 1) // 2)
    return whole + sum(ceilings[:rest]) + rest * full * growth


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How the key tiles' work is cut into items, for all of one stream's trees."""

    least: int
    """Query tiles of an item (where a key tile has as many)."""
    most: int
    """Items beyond one for each key tile."""

    @property
    def num_slots(self) -> int:
        """Enough for any tree: only tiles of two items or more have slots."""
        return 2 * self.most

    @staticmethod
    def of(tiles: Tiles, size: int, *, heads: int, kv_heads: int) -> Cut:
        """For streams of `size` rows, at least one."""
        least = -(-tiles.item_pairs // (heads // kv_heads))
        most = min(-(-tiles.num_items // kv_heads), -(-most_pairs(size, tiles.kv_grad) // least))
        return Cut(least=least, most=most)
