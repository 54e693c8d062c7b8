"""Tree attention's Triton kernels in the interpreter, held to float64 (see `budget`).

Small tiles make many of them from few rows; the table's own shapes are compiled elsewhere.

Dimension key: S packed tree positions, H query heads, K key/value heads, E head width.
"""

import random

import pytest
import torch
from g2rpo_kernels.tree_attention import TilePlan, tile_plan, tree_attention
from g2rpo_kernels.tree_attention.cascade.nodes import nodes_of
from g2rpo_kernels.tree_attention.tiles import Tile, Tiles
from g2rpo_kernels.tree_attention.triton import tree_attention_triton
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from trees import QKV, forest, path_lengths, qkv, with_grads, worst_excess


def tiles_of(block_q: int, block_kv: int, *, split: bool = False, num_items: int = 1024) -> Tiles:
    """The forward's shape; the gradients get others, so that nothing depends on equal ones."""

    def tile(q: int, kv: int) -> Tile:
        return Tile(block_q=q, block_kv=kv, warps=4, stages=1)

    return Tiles(
        forward=tile(block_q, block_kv),
        query_grad=tile(block_kv, block_kv),
        kv_grad=tile(block_kv, block_q),
        split_kv_grad=split,
        item_pairs=1,
        num_items=num_items,
    )


def attention_of(end_S: Tensor, tiles: Tiles | None, window: int | None = None, softcap: float | None = None):
    plan = tile_plan(end_S, path_lengths(end_S))

    def attention(q_SHE: Tensor, k_SKE: Tensor, v_SKE: Tensor) -> Tensor:
        return tree_attention_triton(
            q_SHE, k_SKE, v_SKE, scale=0.4, window=window, softcap=softcap, plan=plan, tiles=tiles
        )

    return attention


def excess_of(
    inputs: QKV,
    end_S: Tensor,
    tiles: Tiles | None = None,
    window: int | None = None,
    softcap: float | None = None,
) -> float:
    attention = attention_of(end_S, tiles, window, softcap)
    position_S = path_lengths(end_S)
    return worst_excess(inputs, end_S, attention, position_S=position_S, window=window, softcap=softcap)


def small_forest(rng: random.Random, most: int) -> Tensor:
    """A random forest of at most `most` rows."""
    while True:
        end_S = forest(
            rng.randrange(1 << 30),
            trees=rng.choice((1, 2)),
            depth=rng.choice((1, 2, 3, 6)),
            lengths=rng.choice(((1,), (1, 2, 5), (3, 11))),
        )
        if len(end_S) <= most:
            return end_S


@pytest.mark.parametrize(
    "seed", [*range(4), *(pytest.param(seed, marks=pytest.mark.deep) for seed in range(4, 10))]
)
def test_kernels_keep_the_budget_on_random_trees(seed: int) -> None:
    """Twenty trees each, in float32; every fourth in float16."""
    rng, worst = random.Random(seed), {}
    for case in range(20):
        end_S = small_forest(rng, 28)
        kv_heads = rng.choice((1, 1, 2))
        dtype = torch.float16 if case % 4 == 3 else torch.float32
        inputs = qkv(len(end_S), kv_heads * rng.choice((1, 2)), kv_heads, rng.choice((8, 16)), dtype)
        block_q, block_kv = rng.choice(((8, 8), (16, 8), (8, 16)))
        options = {
            "window": rng.choice((None, None, 1, 3, 9)),
            "softcap": rng.choice((None, None, 0.7, 30.0)),
        }
        tiles = tiles_of(block_q, block_kv, split=case % 5 == 0, num_items=rng.choice((4, 1024)))
        excess = excess_of(inputs, end_S, tiles, **options)
        worst[excess] = (case, len(end_S), dtype, options)
    assert max(worst) <= 1.0, worst[max(worst)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("group", [1, 2, 4, 8])
def test_kernels_share_keys_between_query_heads(group: int, dtype: torch.dtype) -> None:
    end_S = forest(20, trees=1, depth=2, lengths=(1, 7, 12))
    assert 16 < len(end_S) < 40
    assert excess_of(qkv(len(end_S), 2 * group, 2, 16, dtype), end_S, tiles_of(16, 16)) <= 1.0


@pytest.mark.parametrize("seed", [1, 32, 106, 149])
def test_kernels_on_six_levels_of_nodes(seed: int) -> None:
    end_S = forest(seed, trees=1, depth=6, lengths=(1, 2, 5))
    assert nodes_of(end_S).depth_N.max() == 5
    assert excess_of(qkv(len(end_S), 2, 1, 16, torch.float32), end_S, tiles_of(16, 8)) <= 1.0
    assert excess_of(qkv(len(end_S), 1, 1, 16, torch.float16), end_S, tiles_of(16, 16), window=6) <= 1.0


@pytest.mark.parametrize("width", [8, 40, 64, 96, 128, 256])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_kernels_pad_head_widths(width: int, softcap: float | None) -> None:
    end_S = forest(21, trees=1, depth=2, lengths=(1, 7, 12))
    assert 16 < len(end_S) < 40
    assert (
        excess_of(qkv(len(end_S), 2, 1, width, torch.float32), end_S, tiles_of(16, 8), None, softcap) <= 1.0
    )


@pytest.mark.parametrize(
    "end",
    [
        [1],
        [2, 2],
        [1, 2, 3],
        [9] + [i + 1 for i in range(1, 9)],
        [33] * 33,
        [12, 11, 10, 9, 8, 7, 7, 8, 9, 10, 11, 12],
    ],
    ids=["one", "pair", "single_token_trees", "star", "chain", "nested"],
)
def test_kernels_on_degenerate_trees(end: list[int]) -> None:
    end_S = torch.tensor(end)
    for tiles in (tiles_of(8, 4), tiles_of(16, 16), None):
        assert excess_of(qkv(len(end), 2, 1, 8, torch.float32), end_S, tiles) <= 1.0


def test_kernels_node_offsets_at_every_residue_of_64() -> None:
    """A shared node of each length mod 64, three leaves: the table's tiles, gradients of all rows."""
    for offset in range(33, 97):
        leaves = [offset + 5 * (i + 1) for i in range(3)]
        end_S = torch.tensor([leaves[-1]] * offset + [e for e in leaves for _ in range(5)])
        inputs = qkv(len(end_S), 1, 1, 8, torch.float32)
        assert excess_of(inputs, end_S, tiles_of(64, 64)) <= 1.0


@pytest.mark.parametrize("shift", [-50.0, 50.0])
def test_kernels_keep_the_budget_on_confident_rows(shift: float) -> None:
    """Scores of up to +-hundreds: a few keys take nearly all of the weight."""
    end_S = forest(22, trees=1, depth=3, lengths=(1, 7, 12))
    q, k, v = qkv(len(end_S), 2, 2, 16, torch.float32)
    inputs = q, (k.detach() * 20 + shift).requires_grad_(), v
    assert excess_of(inputs, end_S, tiles_of(16, 8)) <= 1.0


def test_heavy_prefix_is_split_and_repeats_bit_for_bit() -> None:
    end_S = torch.tensor([90] * 30 + [50] * 20 + [90] * 20 + [90] * 20)
    inputs = qkv(90, 2, 1, 40, torch.float32)
    tiles = tiles_of(16, 16)
    plan = tile_plan(end_S)
    slot_N2 = plan.lists(tiles, heads=2, kv_heads=1, window=None).kv_grad.slot_N2
    assert int(slot_N2[:, 1].max()) >= 3
    assert int(slot_N2[:, 1].min()) == 0
    assert excess_of(inputs, end_S, tiles) <= 1.0
    first, second = (with_grads(inputs, attention_of(end_S, tiles)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second))
    one_piece = tiles_of(16, 16, num_items=1)
    assert int(plan.lists(one_piece, heads=2, kv_heads=1, window=None).kv_grad.slot_N2[:, 1].max()) <= 1
    whole = with_grads(inputs, attention_of(end_S, one_piece))
    assert not torch.equal(whole[2], first[2])
    torch.testing.assert_close(whole[2], first[2])


def test_every_output_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory handed out by torch full of NaN shows in no result."""
    empty, new_empty, empty_like = torch.empty, Tensor.new_empty, torch.empty_like
    poisoned = []

    def poison(x: Tensor) -> Tensor:
        poisoned.append(x.shape)
        return x.fill_(float("nan")) if x.is_floating_point() else x

    monkeypatch.setattr(torch, "empty", lambda *a, **k: poison(empty(*a, **k)))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: poison(empty_like(*a, **k)))
    monkeypatch.setattr(Tensor, "new_empty", lambda *a, **k: poison(new_empty(*a, **k)))
    end_S = forest(23, trees=1, depth=3, lengths=(1, 7, 12))
    for tiles in (tiles_of(8, 8), tiles_of(16, 16, num_items=1), tiles_of(8, 8, split=True)):
        assert excess_of(qkv(len(end_S), 2, 1, 40, torch.float32), end_S, tiles) <= 1.0
    assert len(poisoned) >= 3 * 8


def test_strided_inputs_and_expanded_gradients() -> None:
    end_S = forest(24, trees=1, depth=3, lengths=(1, 7, 12))
    inputs = qkv(len(end_S), 2, 1, 16, torch.float32)
    attention = attention_of(end_S, tiles_of(16, 8))
    wanted = with_grads(inputs, attention)
    for dims in ((0, 1), (1, 2)):
        q, k, v = (x.detach().transpose(*dims).contiguous().transpose(*dims).requires_grad_() for x in inputs)
        assert torch.equal(attention(q, k, v), wanted[0])
    grads = torch.autograd.grad(attention(*inputs).sum(), inputs)
    eager = torch.autograd.grad(tree_attention(*inputs, end_S, scale=0.4, impl="reference").sum(), inputs)
    for have, want in zip(grads, eager):
        torch.testing.assert_close(have, want)


def test_rows_past_two_to_the_31_numbers() -> None:
    """A stride that takes the last row beyond int32, in memory that is never touched between the rows."""
    size, stride = 34, 1 << 26
    assert (size - 1) * stride > 1 << 31
    end_S = torch.tensor([size] * 20 + [27] * 7 + [size] * 7)
    dense = qkv(size, 1, 1, 8, torch.float16)
    store = torch.empty((size - 1) * stride + 8, dtype=torch.float16)
    far = store.as_strided((size, 1, 8), (stride, 8, 1))
    attention = attention_of(end_S, tiles_of(16, 8))
    out_SHE = attention(*dense).detach()
    for i in range(3):
        inputs = [x.detach() for x in dense]
        inputs[i] = far.copy_(inputs[i])
        assert torch.equal(attention(*inputs), out_SHE)


def test_operators_satisfy_torch_library() -> None:
    end_S = forest(25, trees=1, depth=2, lengths=(3, 7))
    inputs = qkv(len(end_S), 2, 1, 8, torch.float32)
    attention = attention_of(end_S, tiles_of(16, 8), window=5)
    wanted = with_grads(inputs, attention)
    compiled = torch.compile(attention, backend="aot_eager", fullgraph=True)
    assert all(torch.equal(a, b) for a, b in zip(with_grads(inputs, compiled), wanted))

    def checkpointed(*inputs: Tensor) -> Tensor:
        return checkpoint(attention, *inputs, use_reentrant=False)

    assert all(torch.equal(a, b) for a, b in zip(with_grads(inputs, checkpointed), wanted))


def test_public_function_shares_a_plan_and_names_what_it_cannot_do() -> None:
    end_S = forest(26, trees=1, depth=2, lengths=(3, 7))
    q, k, v = qkv(len(end_S), 2, 1, 8, torch.float32)
    position_S = path_lengths(end_S)
    plan = tile_plan(end_S, position_S)

    def run(tiles: TilePlan | None, q: Tensor, k: Tensor, v: Tensor, window: int | None = None) -> Tensor:
        return tree_attention(
            q, k, v, end_S, position_S=position_S, scale=1.0, window=window, impl="triton", tiles=tiles
        )

    assert torch.equal(run(plan, q, k, v), run(None, q, k, v))
    assert torch.equal(run(plan, q, k, v, window=3), run(None, q, k, v, window=3))
    assert not torch.equal(run(plan, q, k, v, window=3), run(plan, q, k, v))
    for match, tiles, inputs in (
        ("bfloat16, float16 or float32, got torch.float64", plan, [x.double() for x in (q, k, v)]),
        ("multiple of 8, got 7", plan, [x[..., :7] for x in (q, k, v)]),
        ("a tile plan with positions", tile_plan(end_S), [q, k, v]),
        (f"tiles: wanted one of {len(end_S)} rows", tile_plan(end_S[:3]), [q, k, v]),
    ):
        with pytest.raises(ValueError, match=match):
            run(tiles, *inputs, window=3)
