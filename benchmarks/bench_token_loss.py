"""A loss of one's own from hidden states and LM head: fused, on materialised logits, and by its name.

One step is loss, d hidden and d head. Sides run in turn, on a CPU in processes of their own; times are CPU
times of one thread. What the batch ties does not fit a chunk at V = 151,936: four products, unless a look at
the log-probabilities was taken before. With few tokens in the vocabulary, the last case, logits are small and
little is gained.
"""

from __future__ import annotations

import os
import statistics
from dataclasses import asdict, dataclass
from typing import Any

import pytest
import torch

from linear_problem import make_problem
from linear_sides import Figures, in_own_process, step_of
from provenance import Record
from timing import interleaved, peak_mib, spread_ms
from token_sides import SIDES, TIES
from token_sides import __file__ as script


@dataclass(frozen=True)
class Shape:
    rows: int
    width: int
    vocabulary: int

    def __str__(self) -> str:
        return f"n{self.rows}_d{self.width}_v{self.vocabulary}"


ON_GPU = torch.cuda.is_available()
CASES = {
    Shape(512, 128, 151_936): (2, 2),
    Shape(1024, 256, 151_936): (1, 2),
    Shape(4096, 128, 40): (3, 20),
}
"""Rounds of processes, and steps timed in each."""
SMALL = Shape(64, 8, 104)


@pytest.mark.parametrize(("shape", "effort"), CASES.items(), ids=map(str, CASES))
def test_token_loss(benchmark_mode: bool, record: Record, shape: Shape, effort: tuple[int, int]) -> None:
    """Every side of a tie computes the same loss."""
    load = os.getloadavg()[0]
    if benchmark_mode and not ON_GPU:
        results = in_processes(shape, *effort)
    else:
        results = in_this_process(shape if benchmark_mode else SMALL, effort[1] if benchmark_mode else 1)
    for ties in TIES:
        losses = {side: found["loss"] for side, found in results.items() if side.endswith(ties)}
        wanted = losses[f"eager_{ties}"]
        assert wanted != 0
        for loss in losses.values():
            assert loss == pytest.approx(wanted, rel=1e-3, abs=1e-5)
    figures = {
        **asdict(shape if benchmark_mode else SMALL),
        "dtype": "bfloat16" if ON_GPU else "float32",
        "load_average_at_start": load,
        "sides": [row_of(side, results) for side in results],
    }
    record(f"token_loss_{'cuda' if ON_GPU else 'cpu'}_{shape}", figures)


def row_of(name: str, results: dict[str, Figures]) -> dict[str, Any]:
    """Ratios are to `token_loss` with the same loss."""
    side, ties = name.split("_")
    found, fused = results[name], results[f"fused_{ties}"]
    return {
        "ties": ties,
        "side": side,
        **spread_ms(found["seconds"]),
        "time_ratio": statistics.median(found["seconds"]) / statistics.median(fused["seconds"]),
        "peak_mib": found["peak_mib"],
        "memory_ratio": found["peak_mib"] / max(fused["peak_mib"], 1.0),
    }


def in_processes(shape: Shape, rounds: int, steps: int) -> dict[str, Figures]:
    results: dict[str, Figures] = {}
    for _ in range(rounds):
        for side in SIDES:
            found = in_own_process(side, {**asdict(shape), "steps": steps}, script)
            result = results.setdefault(side, {"seconds": [], "peak_mib": 0.0, "loss": found["loss"]})
            result["seconds"] += found["cpu_seconds"]
            result["peak_mib"] = max(result["peak_mib"], found["peak_mib"])
    return results


def in_this_process(shape: Shape, steps: int) -> dict[str, Figures]:
    """On CUDA, and small: all sides on the same inputs, in turn."""
    problem = make_problem(**asdict(shape), device="cuda" if ON_GPU else "cpu")
    runs = {side: step_of(make(), problem) for side, make in SIDES.items()}
    losses = {side: float(step()) for side, step in runs.items()}
    seconds = interleaved(runs, steps)
    return {
        side: {"seconds": seconds[side], "peak_mib": peak_mib(step), "loss": losses[side]}
        for side, step in runs.items()
    }
