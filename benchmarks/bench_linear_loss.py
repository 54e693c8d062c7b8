"""From hidden states and LM head to a clipped loss and both gradients: against eager, compiled and Liger.

The floor is three matrix products; `share_of_products` says how much of a step they are when run alone. On a
CPU sides run in turn in processes of their own, and the times compared are CPU times of one thread, which
other work on the machine disturbs least.
"""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Callable

import pytest
import torch

from linear_sides import Figures, in_own_process, make_problem, step_of
from timing import medians

CPU_SHAPES = [
    {"rows": 512, "width": 256, "vocabulary": 151_936},
    {"rows": 512, "width": 512, "vocabulary": 151_936},
    {"rows": 2048, "width": 256, "vocabulary": 151_936},
    {"rows": 2048, "width": 512, "vocabulary": 32_000},
    {"rows": 11_008, "width": 128, "vocabulary": 40},
]
"""The third is for memory; the last is the embedded task's size."""
GPU_SHAPES = [
    {"rows": 16_384, "width": 2048, "vocabulary": 151_936},
    {"rows": 16_384, "width": 4096, "vocabulary": 151_936},
]
SMALL = {"rows": 64, "width": 8, "vocabulary": 101}
CPU_SIDES = ["ours", "eager", "products"]
HAS_LIGER = importlib.util.find_spec("liger_kernel") is not None


def test_linear_policy_loss_against_eager(benchmark_mode: bool, record: Callable[[str, dict], None]) -> None:
    """One step (loss, d hidden, d head) at several shapes; peak memory of a step beside the inputs."""
    shapes, steps, rounds = (CPU_SHAPES, 2, 2) if benchmark_mode else ([SMALL], 1, 1)
    sides = [*CPU_SIDES, "liger"] if HAS_LIGER else CPU_SIDES
    cases = [on_cpu(shape, sides, steps, rounds) for shape in shapes]
    for case in cases:
        losses = [case[side]["loss"] for side in sides if side != "products"]
        assert losses[0] != 0
        assert losses == pytest.approx([losses[0]] * len(losses), rel=1e-3)
    record("linear_policy_loss_cpu", {"cases": cases})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_linear_policy_loss_on_cuda(benchmark_mode: bool, record: Callable[[str, dict], None]) -> None:
    """The same in bfloat16, N = 16,384; milliseconds, peak memory, share of the products' time."""
    shapes, rounds = (GPU_SHAPES, 5) if benchmark_mode else ([SMALL], 1)
    record("linear_policy_loss_cuda", {"cases": [on_cuda(shape, rounds) for shape in shapes]})


def on_cpu(shape: dict[str, int], sides: list[str], steps: int, rounds: int) -> Figures:
    runs: dict[str, list[Figures]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side in sides:
            runs[side].append(in_own_process(side, {**shape, "steps": steps}))
    results = {side: summary(found) for side, found in runs.items()}
    ours = results["ours"]
    return {
        **shape,
        **results,
        "share_of_products": results["products"]["median_cpu_s"] / ours["median_cpu_s"],
        "cpu_time_ratio": {s: results[s]["median_cpu_s"] / ours["median_cpu_s"] for s in sides},
        "peak_memory_ratio": {s: results[s]["peak_mib"] / ours["peak_mib"] for s in sides},
    }


def summary(runs: list[Figures]) -> Figures:
    cpu = sorted(seconds for run in runs for seconds in run["cpu_seconds"])
    wall = sorted(seconds for run in runs for seconds in run["seconds"])
    return {
        "median_cpu_s": statistics.median(cpu),
        "min_cpu_s": cpu[0],
        "max_cpu_s": cpu[-1],
        "median_s": statistics.median(wall),
        "measured_steps": len(cpu),
        "peak_mib": statistics.median(run["peak_mib"] for run in runs),
        "loss": runs[0]["loss"],
    }


def on_cuda(shape: dict[str, int], rounds: int) -> Figures:
    problem = make_problem(**shape, device="cuda")
    sides = ["ours", "eager", "compiled", "products", *(["liger"] if HAS_LIGER else [])]
    steps = {side: step_of(side, problem) for side in sides}
    seconds = medians(steps, rounds)
    operations = 6 * shape["rows"] * shape["width"] * shape["vocabulary"]
    return {
        **shape,
        "dtype": "bfloat16",
        "ms": {side: 1e3 * s for side, s in seconds.items()},
        "share_of_products": seconds["products"] / seconds["ours"],
        "tflop_per_s": operations / seconds["ours"] / 1e12,
        "time_ratio": {side: s / seconds["ours"] for side, s in seconds.items()},
        "peak_mib": {side: allocated_mib(step) for side, step in steps.items()},
    }


def allocated_mib(step: Callable[[], object]) -> float:
    """Most that a step allocates beside what is there before."""
    torch.cuda.empty_cache()
    base = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    return (torch.cuda.max_memory_allocated() - base) / 2**20
