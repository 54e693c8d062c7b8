"""Interleaved medians of calls in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch

Run = Callable[[], object]


def medians(runs: Mapping[str, Run], rounds: int) -> dict[str, float]:
    """Median seconds of each run, taken in turn after a warm-up; waits for the device."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(rounds + 1):
        for name, run in runs.items():
            start = now()
            run()
            if round_:
                seconds[name].append(now() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
