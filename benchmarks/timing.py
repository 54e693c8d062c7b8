"""Times of calls taken in turn, the memory that a call adds, and what the device itself can do.

On CUDA times are the device's own (events), of as many calls as fill `SAMPLE_S`: a wall clock around one
short call would measure the host that launches it. On a CPU they are this process's CPU time. Every record
states its figures against the ceilings measured in the same run: a matrix product with float32 or bfloat16
operands, and a copy.
"""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

Run = Callable[[], object]
Figures = dict[str, float]
SAMPLE_S = 5e-3
MOST_CALLS = 100


class Deadline:
    """When optional work is left out, so that a run with a time limit ends with what it has."""

    def __init__(self, seconds: float | None) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds

    def passed(self) -> bool:
        return self._end is not None and time.monotonic() >= self._end


def interleaved(
    runs: Mapping[str, Run], rounds: int, *, warm: bool = False, long: bool = False
) -> dict[str, list[float]]:
    """Seconds of a call of each run, taken in turn; unless `warm`, after a round that is not counted.
    `long`: one call is a sample, and no call is spent on finding that out."""
    if not warm:
        for run in runs.values():
            run()
    calls = {name: 1 if long else _calls_of_a_sample(run) for name, run in runs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            seconds[name].append(_timed(run, calls[name]))
    return seconds


def _calls_of_a_sample(run: Run) -> int:
    if not torch.cuda.is_available():
        return 1
    return min(MOST_CALLS, max(1, round(SAMPLE_S / max(_timed(run, 1), 1e-6))))


def _timed(run: Run, calls: int) -> float:
    """Seconds of one call, the mean of `calls`."""
    if not torch.cuda.is_available():
        start = time.process_time()
        for _ in range(calls):
            run()
        return (time.process_time() - start) / calls
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(calls):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / calls


def medians(runs: Mapping[str, Run], rounds: int) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in interleaved(runs, rounds).items()}


def spread_ms(seconds: Sequence[float], prefix: str = "") -> Figures:
    """Median, least and most, in milliseconds."""
    figures = {"median_ms": statistics.median(seconds), "min_ms": min(seconds), "max_ms": max(seconds)}
    return {prefix + name: 1e3 * value for name, value in figures.items()}


def peak_mib(run: Run) -> float:
    """Most that a call holds beside what is there before: allocated on CUDA, resident on a CPU (Linux)."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        base = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return (torch.cuda.max_memory_allocated() - base) / 2**20
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    base = _resident_mib("VmRSS")
    run()
    return max(0.0, _resident_mib("VmHWM") - base)


def _resident_mib(field: str) -> float:
    """VmRSS (now) or VmHWM (the most since the peak was cleared) of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


def ceilings(device: str, dtype: torch.dtype, *, small: bool = False) -> Figures:
    """Best square matrix product and copy of several on this device (one thread on a CPU). A GPU's clock has
    to rise first."""
    on_gpu = device == "cuda"
    width, copied = (8192, 1 << 31) if on_gpu else (2048, 1 << 28)
    if small:
        width, copied = 64, 1 << 16
    left, right = (torch.randn(width, width, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(left)
    source = torch.randint(0, 256, (copied,), dtype=torch.uint8, device=device)  # zeros would copy faster
    target = torch.empty_like(source)
    runs: dict[str, Run] = {
        "product": lambda: torch.mm(left, right, out=product),
        "copy": lambda: target.copy_(source),
    }
    rounds = 25 if on_gpu else 5
    best = {name: min(seconds) for name, seconds in interleaved(runs, rounds).items()}
    return {
        "matmul_tflops": 2e-12 * width**3 / best["product"],
        "copy_gb_per_s": 2e-9 * copied / best["copy"],
    }
