"""Tree attention's Triton kernels on a GPU: the error budget, bit-for-bit repeats, nothing waits.

Dimension key: S packed tree positions, H query heads, K key/value heads, E head width.
"""

from typing import Any

import pytest
import torch
from g2rpo_kernels.tree_attention import TilePlan, tile_plan, tree_attention
from g2rpo_kernels.tree_attention.tiles import CHIPS, tiles_for
from torch import Tensor

from trees import QKV, copies, forest, path_lengths, qkv, tensors_of, with_grads, worst_excess

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def on_gpu(end_S: Tensor, heads: int, kv_heads: int, width: int, dtype: torch.dtype) -> tuple[QKV, Tensor]:
    q, k, v = (x.detach().cuda() for x in qkv(len(end_S), heads, kv_heads, width, dtype))
    return copies((q, k, v), dtype), end_S.cuda()


def attention_of(end_S: Tensor, window: int | None = None, softcap: float | None = None, **kwargs: Any):
    position_S = path_lengths(end_S.cpu()).cuda()
    plan = tile_plan(end_S, position_S)

    def attention(q_SHE: Tensor, k_SKE: Tensor, v_SKE: Tensor) -> Tensor:
        return tree_attention(
            q_SHE, k_SKE, v_SKE, end_S, position_S=position_S, scale=0.4, window=window, softcap=softcap,
            impl="triton", tiles=plan, **kwargs,
        )  # fmt: skip

    return attention


def check(inputs: QKV, end_S: Tensor, window: int | None = None, softcap: float | None = None) -> None:
    attention = attention_of(end_S, window, softcap)
    options = {"position_S": path_lengths(end_S.cpu()).cuda(), "window": window, "softcap": softcap}
    assert worst_excess(inputs, end_S, attention, **options) <= 1.0
    first, second = (with_grads(inputs, attention) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("width", [8, 40, 64, 96, 128, 256])
def test_gpu_kernels_keep_the_budget_at_every_width(width: int, dtype: torch.dtype) -> None:
    end_S = forest(14, trees=2, depth=4, lengths=(1, 7, 33, 130))
    check(*on_gpu(end_S, 4, 2, width, dtype))


@pytest.mark.parametrize(("window", "softcap"), [(100, None), (None, 2.0), (3, 30.0)])
@pytest.mark.parametrize("group", [1, 2, 4, 8])
@pytest.mark.parametrize("width", [64, 128, 256])
def test_gpu_kernels_with_windows_softcaps_and_grouped_heads(
    width: int, group: int, window: int | None, softcap: float | None
) -> None:
    end_S = forest(15, trees=2, depth=4, lengths=(1, 7, 33, 130))
    check(*on_gpu(end_S, 2 * group, 2, width, torch.bfloat16), window, softcap)


def test_gpu_kernels_on_random_trees() -> None:
    for seed in range(100):
        end_S = forest(seed, trees=1 + seed % 3, depth=1 + seed % 6, lengths=((1,), (1, 2, 7, 33))[seed % 2])
        check(*on_gpu(end_S, 4, 2, 64, torch.bfloat16))


def test_gpu_kernels_node_offsets_at_every_residue_of_64() -> None:
    for offset in range(97, 161):
        leaves = [offset + 70 * (i + 1) for i in range(3)]
        end_S = torch.tensor([leaves[-1]] * offset + [e for e in leaves for _ in range(70)])
        check(*on_gpu(end_S, 2, 1, 128, torch.bfloat16))


def test_gpu_heavy_prefix_is_split() -> None:
    end_S = torch.tensor([3072] * 1024 + [1024 + 256 * (i + 1) for i in range(8) for _ in range(256)])
    inputs, end_S = on_gpu(end_S, 8, 2, 128, torch.bfloat16)
    chip = CHIPS[torch.cuda.get_device_capability()]
    tiles = tiles_for(chip, torch.bfloat16, 128)
    lists = tile_plan(end_S).lists(tiles, heads=8, kv_heads=2, window=None)
    assert int(lists.kv_grad.slot_N2[:, 1].max()) >= 3
    check(inputs, end_S)


def test_gpu_nothing_waits_for_the_device_and_the_compiler_takes_it() -> None:
    end_S = forest(16, trees=2, depth=4, lengths=(1, 7, 33, 130))
    inputs, end_S = on_gpu(end_S, 4, 2, 64, torch.bfloat16)
    wanted = with_grads(inputs, attention_of(end_S))
    attention = attention_of(end_S)
    torch.cuda.set_sync_debug_mode("error")
    try:
        out_SHE = attention(*inputs)
        grads = torch.autograd.grad(out_SHE, inputs, torch.ones_like(out_SHE))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(grad.isfinite().all() for grad in grads)
    got = with_grads(inputs, torch.compile(attention, fullgraph=True))
    assert all(torch.equal(a, b) for a, b in zip(got, wanted))


def test_gpu_lists_equal_those_of_the_host_and_nothing_waits() -> None:
    """65,536 rows: lists built on the device, and those built on the host and sent."""
    leaf = [8192 + 1024 * (i + 1) for i in range(56)]
    end_S = torch.tensor([65536] * 8192 + [e for e in leaf for _ in range(1024)], dtype=torch.int32)
    position_S = torch.cat([torch.arange(8192), torch.arange(8192, 9216).repeat(56)]).int()
    tiles = tiles_for(CHIPS[torch.cuda.get_device_capability()], torch.bfloat16, 128)
    there = end_S.cuda(), position_S.cuda()

    def lists_of(plan: TilePlan) -> list[Tensor]:
        return [
            x
            for window in (None, 2048)
            for x in tensors_of(plan.lists(tiles, heads=32, kv_heads=8, window=window))
        ]

    torch.cuda.set_sync_debug_mode("error")
    try:
        built = lists_of(tile_plan(*there))
        sent = lists_of(tile_plan(end_S, position_S, there[0].device))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for wanted, *others in zip(lists_of(tile_plan(end_S, position_S)), built, sent, strict=True):
        assert wanted.any()
        for got in others:
            assert got.is_cuda
            assert torch.equal(got.cpu(), wanted)
