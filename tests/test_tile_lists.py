"""Tile lists of tree attention: against the dense mask, work items, the worked example.

Dimension key: S packed tree positions, M query tiles, N key tiles, I work items.
"""

from collections import defaultdict
from itertools import pairwise

import pytest
import torch
from g2rpo_kernels.tree_attention.reference import visible
from g2rpo_kernels.tree_attention.tile_lists import KvLists, QueryLists, TileLists, tile_plan
from g2rpo_kernels.tree_attention.tiles import Tile, Tiles

from trees import forest, path_lengths

SHAPES = [(4, 4), (8, 4), (4, 8), (16, 16), (2, 1)]


def tiles_of(block_q: int, block_kv: int, item_pairs: int = 1, num_items: int = 1024) -> Tiles:
    tile = Tile(block_q=block_q, block_kv=block_kv, warps=4, stages=1)
    return Tiles(forward=tile, query_grad=tile, kv_grad=tile, item_pairs=item_pairs, num_items=num_items)


def lists_of(
    seed: int, tiles: Tiles, window: int | None, kv_heads: int = 1
) -> tuple[torch.Tensor, TileLists]:
    """The dense mask [S, S] and the lists, for a random forest."""
    end_S = forest(seed, trees=2, depth=5, lengths=(1, 2, 3, 9))
    position_S = path_lengths(end_S)
    lists = tile_plan(end_S, position_S).lists(tiles, heads=kv_heads, kv_heads=kv_heads, window=window)
    return visible(end_S, position_S, window), lists


def pairs_of_queries(lists: QueryLists) -> dict[tuple[int, int], bool]:
    """(query tile, key tile) -> full?"""
    pairs = {}
    for tile, first, full, count in lists.work_P4.tolist():
        keys = lists.key_L[first : first + count].tolist()
        assert keys[:full] == sorted(keys[:full])
        assert keys[full:] == sorted(keys[full:])
        assert not {(tile, key) for key in keys} & set(pairs)
        pairs |= {(tile, key): n < full for n, key in enumerate(keys)}
    return pairs


def pairs_of_keys(lists: KvLists) -> dict[tuple[int, int], bool]:
    pairs = {}
    for tile, first, full, count, _ in lists.work_I5.tolist():
        queries = lists.query_L[first : first + count].tolist()
        assert not {(query, tile) for query in queries} & set(pairs)
        pairs |= {(query, tile): n < full for n, query in enumerate(queries)}
    return pairs


def block(seen_SS: torch.Tensor, pair: tuple[int, int], tile: Tile) -> torch.Tensor:
    q, k = pair[0] * tile.block_q, pair[1] * tile.block_kv
    return seen_SS[q : q + tile.block_q, k : k + tile.block_kv]


@pytest.mark.parametrize("window", [None, 4, 30])
@pytest.mark.parametrize("shape", SHAPES)
def test_lists_hold_every_visible_pair_and_full_tiles_need_no_mask(
    shape: tuple[int, int], window: int | None
) -> None:
    for seed in range(6):
        tiles = tiles_of(*shape)
        seen_SS, lists = lists_of(seed, tiles, window)
        pairs = pairs_of_queries(lists.forward)
        assert pairs == pairs_of_keys(lists.kv_grad)
        covered_SS = torch.zeros_like(seen_SS)
        for pair, full in pairs.items():
            block(covered_SS, pair, tiles.forward)[:] = True
            if full:
                part = block(seen_SS, pair, tiles.forward)
                assert part.all()
                assert part.shape == shape
        assert not (seen_SS & ~covered_SS).any()
        if window is None:  # every visited tile holds a visible pair, and every tile without one is skipped
            needed = {pair for pair in pairs if block(seen_SS, pair, tiles.forward).any()}
            assert len(needed) > 0.9 * len(pairs)


@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize(("item_pairs", "num_items"), [(1, 1024), (3, 1024), (1, 7), (2, 1), (1000, 1024)])
def test_items_share_out_the_work_in_bounded_pieces(item_pairs: int, num_items: int, kv_heads: int) -> None:
    tiles = tiles_of(4, 4, item_pairs, num_items)
    _, lists = lists_of(3, tiles, None, kv_heads)
    work = [item for item in lists.kv_grad.work_I5.tolist() if item[0] >= 0]
    most = -(-num_items // kv_heads)
    total = sum(count for *_, count, _ in work)
    assert max(count for *_, count, _ in work) <= max(item_pairs, -(-total // most))
    assert [count for *_, count, _ in work] == sorted((count for *_, count, _ in work), reverse=True)
    items = defaultdict(list)
    for tile, first, _, count, slot in work:
        items[tile].append((first, count, slot))
    slots = lists.kv_grad.slot_N2.tolist()
    assert sorted(items) == list(range(len(slots)))
    used = []
    for tile, parts in items.items():
        parts.sort()
        wanted = list(range(slots[tile][0], slots[tile][0] + len(parts))) if len(parts) > 1 else [-1]
        assert [slot for *_, slot in parts] == wanted
        assert slots[tile][1] == (len(parts) if len(parts) > 1 else 0)
        assert all(a + n == b for (a, n, _), (b, _, _) in pairwise(parts))
        used += [slot for *_, slot in parts if slot >= 0]
    assert len(set(used)) == len(used)
    assert max(used, default=-1) < lists.kv_grad.num_slots
    assert bool(used) == (item_pairs < 1000 and num_items == 1024)


def test_lists_of_the_documented_example() -> None:
    tile = Tile(block_q=2, block_kv=1, warps=4, stages=1)
    tiles = Tiles(forward=tile, query_grad=tile, kv_grad=tile)
    lists = tile_plan(torch.tensor([4, 4, 3, 4])).lists(tiles, heads=1, kv_heads=1, window=None)
    assert lists.forward.work_P4.tolist() == [[1, 2, 2, 4], [0, 0, 1, 2]]
    assert lists.forward.key_L[:6].tolist() == [0, 1, 0, 1, 2, 3]
    assert lists.query_grad is lists.forward


def test_lists_are_built_once_for_each_window() -> None:
    end_S = forest(1)
    plan = tile_plan(end_S, path_lengths(end_S))
    tiles = tiles_of(16, 16)
    first, again, other = (
        plan.lists(tiles, heads=4, kv_heads=2, window=window) for window in (None, None, 5)
    )
    assert first is again
    assert first is not other
