"""Tile lists of tree attention: against the dense mask, work items, the worked example, C++ against torch.

Dimension key: S packed tree positions, M query tiles, N key tiles, I work items.
"""

from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from g2rpo_kernels import _cpu
from g2rpo_kernels.tree_attention import tile_lists, tile_plan
from g2rpo_kernels.tree_attention.reference import visible
from g2rpo_kernels.tree_attention.tile_lists.cpp import cpp_lists
from g2rpo_kernels.tree_attention.tile_lists.pytorch import torch_lists
from g2rpo_kernels.tree_attention.tile_lists.records import Cut, KvLists, QueryLists, TileLists
from g2rpo_kernels.tree_attention.tiles import HALF, SINGLE, Tile, Tiles
from hypothesis import given
from hypothesis import strategies as st

from trees import forest, path_lengths, tensors_of

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


def check_same(got: TileLists, wanted: TileLists) -> None:
    for ours, theirs in zip(tensors_of(got), tensors_of(wanted), strict=True):
        assert ours.dtype == theirs.dtype == torch.int32
        assert ours.is_contiguous()
        assert torch.equal(ours, theirs)
    assert got.kv_grad.num_slots == wanted.kv_grad.num_slots
    assert (got.query_grad is got.forward) == (wanted.query_grad is wanted.forward)


def check_cpp(
    end_S: torch.Tensor, position_S: torch.Tensor | None, tiles: Tiles, window: int | None, group: int = 1,
    kv_heads: int = 1,
) -> TileLists:  # fmt: skip
    """The lists from C++, having compared them with torch's."""
    end_S = end_S.int()
    position_S = None if position_S is None else position_S.int()
    cut = Cut.of(tiles, len(end_S), heads=group * kv_heads, kv_heads=kv_heads)
    got = cpp_lists(_cpu, end_S, position_S, tiles, cut=cut, window=window, device=end_S.device)
    check_same(got, torch_lists(end_S, position_S, tiles, cut=cut, window=window))
    return got


def comb(depth: int, rows: int) -> torch.Tensor:
    """A path of nodes of `rows`, a leaf of one row before each next node."""
    size = depth * (rows + 1)
    return torch.tensor([size if i % (rows + 1) < rows else i + 1 for i in range(size)])


TREES = {
    "one row": torch.tensor([1]),
    "chain": torch.full((1153,), 1153),
    "single rows": torch.cat([torch.full((90,), 701), torch.arange(91, 702)]),
    "only roots": torch.arange(1, 301),
    "one tree": forest(3, trees=1, depth=6, lengths=(1, 2, 7, 33)),
    "trees": forest(6, trees=3, depth=3, lengths=(1, 7, 33, 130)),
    "deep": comb(60, 19),
}


@pytest.mark.parametrize("tree", TREES)
def test_cpp_equals_torch_for_every_tile_of_the_tables(tree: str) -> None:
    end_S = TREES[tree]
    position_S = path_lengths(end_S)
    longest = int(position_S.max()) + 1
    lengths = []
    for tiles in [*HALF.values(), *SINGLE.values()]:
        for window in (None, 1, longest // 2 + 1, longest):
            lists = check_cpp(end_S, position_S, tiles, window, group=4, kv_heads=8)
            lengths.append(int(lists.kv_grad.work_I5[:, 3].sum()))
    assert len(set(lengths)) > 1 or len(end_S) <= 1


@given(
    seed=st.integers(0, 1 << 20),
    trees=st.integers(1, 4),
    depth=st.integers(1, 6),
    blocks=st.tuples(*[st.integers(1, 17)] * 6),
    work=st.tuples(st.integers(1, 40), st.integers(1, 1024)),
    heads=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    window=st.none() | st.integers(1, 60),
)
def test_cpp_equals_torch_for_random_trees(
    seed: int, trees: int, depth: int, blocks: tuple[int, ...], work: tuple[int, int],
    heads: tuple[int, int], window: int | None,
) -> None:  # fmt: skip
    end_S = forest(seed, trees=trees, depth=depth, lengths=(1, 2, 9))[:400].clamp(max=400)
    forward, query_grad, kv_grad = (
        Tile(block_q=q, block_kv=kv, warps=4, stages=1) for q, kv in zip(blocks[:3], blocks[3:])
    )
    tiles = Tiles(
        forward=forward, query_grad=query_grad, kv_grad=kv_grad, item_pairs=work[0], num_items=work[1]
    )
    check_cpp(end_S, path_lengths(end_S), tiles, window, *heads)


def test_cpp_takes_what_is_no_tree_without_harm() -> None:
    """Random numbers, far out of range too: torch's lists again, and nothing outside the stream."""
    generator = torch.Generator().manual_seed(0)
    far = 2**31 - 1
    for low, high in ((-5, 0), (0, 1), (-400, 400), (-far, far), (far - 1, far)):
        for size in (1, 7, 203):
            end_S, position_S = torch.randint(low, high, (2, size), generator=generator)
            for tiles in (tiles_of(8, 4), tiles_of(3, 16)):
                # Differences of positions overflow torch's int32: not compared.
                lists = check_cpp(end_S, position_S % 1000, tiles, None)
                check_cpp(end_S, position_S % 1000, tiles, 100)
                assert all(int(x.min()) >= 0 and int(x.max()) < size for x in (lists.forward.key_L,))
                native = tile_plan(end_S, position_S).lists(tiles, heads=1, kv_heads=1, window=far)
                assert int(native.kv_grad.query_L.max()) < size


def test_lists_for_another_device_are_one_copy_of_aligned_views() -> None:
    end_S = TREES["trees"]
    tiles = HALF["sm_90", 128]
    here = tile_plan(end_S).lists(tiles, heads=32, kv_heads=8, window=None)
    plan = tile_plan(end_S, path_lengths(end_S), torch.device("meta"))
    there = plan.lists(tiles, heads=32, kv_heads=8, window=None)
    assert plan.device.type == "meta"
    assert plan.position_S is not None
    assert plan.position_S.device.type == "meta"
    for ours, theirs in zip(tensors_of(here), tensors_of(there), strict=True):
        assert theirs.device.type == "meta"
        assert ours.shape == theirs.shape
        assert ours.storage_offset() == theirs.storage_offset()
        assert ours.storage_offset() * ours.element_size() % 16 == 0
    assert len({x.untyped_storage().data_ptr() for x in tensors_of(here)}) == 1
    assert len(tensors_of(here)) == 7


def test_lists_without_the_extension_and_in_a_compiled_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    end_S = TREES["one tree"]
    tiles = tiles_of(8, 4)

    def built() -> TileLists:
        return tile_plan(end_S, path_lengths(end_S)).lists(tiles, heads=2, kv_heads=1, window=9)

    wanted = built()
    assert wanted.forward.key_L.untyped_storage().data_ptr() == (
        wanted.kv_grad.query_L.untyped_storage().data_ptr()
    )
    plan = tile_plan(end_S, path_lengths(end_S))

    def compiled() -> list[torch.Tensor]:
        return [x + 1 for x in tensors_of(plan.lists(tiles, heads=2, kv_heads=1, window=9))]

    traced = torch.compile(compiled, backend="eager", fullgraph=True)()
    assert all(torch.equal(x, y + 1) for x, y in zip(traced, tensors_of(wanted), strict=True))
    monkeypatch.setattr(tile_lists, "EXTENSION", "g2rpo_kernels._absent")
    check_same(built(), wanted)


def ints(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.int32)


def test_cpp_refuses_bad_arguments_before_memory_is_touched() -> None:
    end = np.full(4, 4, np.int32)
    query: list[object] = [end, None, 0, 2, 1, ints(2, 4), ints(6)]
    kv: list[object] = [end, None, 0, 2, 1, 1, 3, ints(7, 5), ints(6), ints(4, 2)]
    _cpu.query_lists(*query)  # pyright: ignore[reportArgumentType]
    _cpu.kv_lists(*kv)  # pyright: ignore[reportArgumentType]
    frozen = ints(6)
    frozen.setflags(write=False)
    bad = [
        (query, 0, ints(0), ValueError, "at least one"),
        (query, 0, end.astype(np.int64), TypeError, "end: wanted int32 on the CPU"),
        (query, 1, ints(3), ValueError, "position"),
        (query, 3, 0, ValueError, "tile"),
        (query, 4, 1 << 40, ValueError, "tile"),
        (query, 5, ints(3, 4), ValueError, "work: wanted 8 numbers, got 12"),
        (query, 6, ints(7), ValueError, "key: wanted 6 numbers, got 7"),
        (query, 6, frozen, BufferError, "readonly"),
        (query, 6, np.zeros(6), TypeError, "key: wanted int32 on the CPU"),
        (query, 6, ints(12)[::2], TypeError, "key: wanted numbers without gaps"),
        (query, 6, [0] * 6, TypeError, "key: wanted a tensor"),
        (kv, 5, 0, ValueError, "least, most"),
        (kv, 6, 1 << 62, ValueError, "least, most"),
        (kv, 6, 4, ValueError, "work"),
        (kv, 8, ints(5), ValueError, "query"),
        (kv, 9, ints(4), ValueError, "slot"),
    ]
    for arguments, place, value, error, message in bad:
        call: Callable[..., None] = _cpu.query_lists if arguments is query else _cpu.kv_lists
        with pytest.raises(error, match=message):
            call(*arguments[:place], value, *arguments[place + 1 :])
    with pytest.raises(ValueError, match="position"):
        tile_plan(torch.tensor([2, 2]), torch.tensor([0])).lists(
            tiles_of(1, 1), heads=1, kv_heads=1, window=1
        )
