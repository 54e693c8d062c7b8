"""Building time of tree attention's tile lists: C++ on one thread against torch on the device at hand.

All three launches of one layer, static tables of sm_90, bfloat16, E = 128. The chain is the most that S rows
can visit. On CUDA C++ is timed by itself ("cpp") and until its lists are on the device ("cpp_to_gpu"), of
which "copy" is the transfer alone. Rounds of C++ and of torch alternate, each warm: its first run, whose
memory the other side has had, does not count.

Dimension key: S packed tree positions, E head width.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from g2rpo_kernels.tree_attention import tile_plan
from g2rpo_kernels.tree_attention.tile_lists.cpp import cpp_lists
from g2rpo_kernels.tree_attention.tile_lists.pytorch import torch_lists
from g2rpo_kernels.tree_attention.tile_lists.records import Cut, TileLists
from g2rpo_kernels.tree_attention.tiles import tiles_for
from torch import Tensor

from timing import Run, interleaved, spread_ms

_cpu = pytest.importorskip("g2rpo_kernels._cpu", exc_type=ImportError)

Levels = tuple[tuple[int, int], ...]
"""Of each level of a tree, (nodes under one parent, rows of a node in units)."""

TREES: dict[str, Levels] = {
    "two levels": ((1, 8), (56, 1)),
    "three levels": ((1, 4), (4, 1), (14, 1)),
    "chain": ((1, 64),),
}
HEADS, KV_HEADS = 32, 8
CPP_RUNS = 10
"""To one of torch."""
TILES = tiles_for("sm_90", torch.bfloat16, 128)


def tree_end(levels: Levels, unit: int, first: int = 0) -> list[int]:
    """END of the nodes at the first of `levels`, and of all below them, from row `first` on."""
    (nodes, rows), *below = levels
    end: list[int] = []
    for _ in range(nodes):
        start = first + len(end)
        children = tree_end(tuple(below), unit, start + rows * unit) if below else []
        end += [start + rows * unit + len(children)] * (rows * unit) + children
    return end


def tensors_of(lists: TileLists) -> list[Tensor]:
    parts = (lists.forward, lists.query_grad, lists.kv_grad)
    return [x for part in parts for x in vars(part).values() if isinstance(x, Tensor)]


def measure(end_S: Tensor, device: torch.device, rounds: int) -> dict[str, object]:
    cut = Cut.of(TILES, len(end_S), heads=HEADS, kv_heads=KV_HEADS)
    on_device_S = end_S.to(device)

    def by_cpp(device: torch.device) -> TileLists:
        return cpp_lists(_cpu, end_S, None, TILES, cut=cut, window=None, device=device)

    def by_torch() -> TileLists:
        return torch_lists(on_device_S, None, TILES, cut=cut, window=None)

    lists = by_cpp(end_S.device)
    numbers = sum(x.numel() for x in tensors_of(lists))
    runs: dict[str, Run] = {"cpp": lambda: by_cpp(end_S.device)}
    if device.type == "cuda":
        packed_X = torch.empty(numbers, dtype=torch.int32, pin_memory=True)
        runs["cpp_to_gpu"] = lambda: tile_plan(end_S, None, device).lists(
            TILES, heads=HEADS, kv_heads=KV_HEADS, window=None
        )
        runs["copy"] = lambda: packed_X.to(device, non_blocking=True)
    for ours, theirs in zip(tensors_of(lists), tensors_of(by_torch()), strict=True):
        assert torch.equal(ours, theirs.cpu())
    seconds: dict[str, list[float]] = {name: [] for name in (*runs, "torch")}
    for _ in range(rounds):
        for name, more in (interleaved(runs, CPP_RUNS) | interleaved({"torch": by_torch}, 1)).items():
            seconds[name] += more
    columns = (lists.forward.work_P4, lists.query_grad.work_P4, lists.kv_grad.work_I5)
    return {
        "entries": sum(int(work[:, 3].sum()) for work in columns),
        "sent_mib": 4 * numbers / 2**20,
        **{name: spread_ms(values) for name, values in seconds.items()},
    }


def test_tile_lists(benchmark_mode: bool, record: Callable[[str, dict], None]) -> None:
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    unit, rounds = (1024, 7) if benchmark_mode else (16, 2)
    cases = []
    for name, levels in TREES.items():
        end_S = torch.tensor(tree_end(levels, unit), dtype=torch.int32)
        assert len(end_S) == 64 * unit
        cases.append({"tree": name, **measure(end_S, device, rounds)})
    figures = {"rows": 64 * unit, "tiles": "sm_90 bfloat16 E=128", "heads": HEADS, "kv_heads": KV_HEADS}
    record(f"tile_lists_{device.type}", {**figures, "cases": cases})
