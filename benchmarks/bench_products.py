"""Float32 products of the CPU path by shape: the rate of the one taken, as a share of the best library's.

Candidates are PyTorch's default library and oneDNN, which a process-wide flag selects (and which, with AMX,
would round to bfloat16 under it: `error` shows it). What the trainer takes: the default in an update, packed
weights while decoding where a weight is large enough. CPU time of one thread, in turn.

Dimension key: rows, inner features, outputs.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from g2rpo_fast.rollout.local.decoder import product_with
from provenance import Record
from timing import interleaved

Run = Callable[[], Tensor]
MAPS = {"query, key, value": (576, 960), "out": (576, 576), "gate, up": (576, 3072), "down": (1536, 576)}
"""Of SmolLM2-135M: inner features, outputs."""
HEAD = (576, 49_152)
TINY = {"gate, up": (128, 768), "down": (384, 128)}
"""Of the embedded task's model."""
DECODED = (8, 64, 256)
CACHE_BYTES = 1 << 26
"""More than the last cache of most processors has for one core."""
Case = tuple[str, int, int, int]


def update_cases() -> list[Case]:
    rows = [(name, 1000, *shape) for name, shape in [*MAPS.items(), ("head", HEAD)]]
    return [*rows, *((f"tiny {name}", 4352, *shape) for name, shape in TINY.items())]


def decode_cases() -> list[Case]:
    return [(name, rows, *shape) for rows in DECODED for name, shape in [*MAPS.items(), ("head", HEAD)]]


@pytest.mark.parametrize("kind", ["update", "decode"])
def test_share_of_the_best_library(benchmark_mode: bool, record: Record, kind: str) -> None:
    cases = update_cases() if kind == "update" else decode_cases()
    rounds = 15
    if not benchmark_mode:
        cases, rounds = [("small", 8, 16, 24)], 1
    before = torch.backends.mkldnn.matmul.fp32_precision
    torch.set_num_threads(1)
    figures = [found for case in cases for found in measured(kind, case, rounds)]
    assert torch.backends.mkldnn.matmul.fp32_precision == before
    assert all(figure["error"] < 1e-4 for figure in figures)
    record(f"products_{kind}_cpu", {"products": figures})


def measured(kind: str, case: Case, rounds: int) -> Iterator[dict[str, float | str]]:
    name, rows, inner, outputs = case
    torch.manual_seed(0)
    x, weight, dy = torch.randn(rows, inner), torch.randn(outputs, inner), torch.randn(rows, outputs)
    exact_x, exact_weight, exact_dy = x.double(), weight.double(), dy.double()
    passes: dict[str, tuple[Run, Run]] = {
        "forward": (lambda: F.linear(x, weight), lambda: exact_x @ exact_weight.T)
    }
    if kind == "update":
        passes["d input"] = lambda: dy @ weight, lambda: exact_dy @ exact_weight
        passes["d weight"] = lambda: dy.T @ x, lambda: exact_dy.T @ exact_x
    for part, (run, exact) in passes.items():
        taken, default = (run, run) if kind == "update" else decoding(x, weight)
        sides = {"taken": taken, "default": default, "onednn": lambda run=default: by_onednn(run)}
        spent = {side: statistics.median(times) for side, times in interleaved(sides, rounds).items()}
        gflops = {side: 2e-9 * rows * inner * outputs / max(time, 1e-9) for side, time in spent.items()}
        truth = exact()
        yield {
            "product": name,
            "pass": part,
            "rows": rows,
            "inner": inner,
            "outputs": outputs,
            **{f"{side}_gflops": rate for side, rate in gflops.items()},
            "share_of_best": gflops["taken"] / max(gflops.values()),
            "error": float((taken().double() - truth).abs().max() / truth.abs().max()),
        }


def decoding(x: Tensor, weight: Tensor) -> tuple[Run, Run]:
    """A product as it is taken, and by the default library. A step of decoding reads each weight once: so
    each call takes the next of as many copies as no cache holds."""
    copies = [weight.clone() for _ in range(1 + CACHE_BYTES // (4 * weight.numel()))]
    packed, plain = cycle([product_with(copy) for copy in copies]), cycle(copies)
    return lambda: next(packed)(x), lambda: F.linear(x, next(plain))


@contextmanager
def onednn() -> Iterator[None]:
    before = torch.backends.mkldnn.matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before


def by_onednn(run: Run) -> Tensor:
    with onednn():
        return run()
