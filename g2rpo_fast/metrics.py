"""Numbers that leave a step: sums with counts, phase times, and what is read of `metrics.jsonl`.

A metric leaves a function as (sum, count) and is divided once, here, so micro-batches and ranks only add.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from g2rpo_fast.step_log import read_log

if TYPE_CHECKING:
    import torch

Stat: TypeAlias = "tuple[torch.Tensor | float, torch.Tensor | float]"


class Means:
    """Adds (sum, count) pairs under names, in float64 where they are; `values()` divides each once.

    Nothing waits for a device until then.
    """

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor | float] = {}
        self._counts: dict[str, torch.Tensor | float] = {}

    def add(self, name: str, total: torch.Tensor | float, count: torch.Tensor | float = 1.0) -> None:
        import torch

        for sums, value in ((self._sums, total), (self._counts, count)):
            sums[name] = sums.get(name, 0.0) + (value.double() if isinstance(value, torch.Tensor) else value)

    def add_all(self, stats: Mapping[str, Stat], prefix: str = "") -> None:
        for name, (total, count) in stats.items():
            self.add(prefix + name, total, count)

    def values(self) -> dict[str, float]:
        """Means by name; NaN where nothing was counted."""
        pairs = {name: (float(total), float(self._counts[name])) for name, total in self._sums.items()}
        return {name: total / count if count else math.nan for name, (total, count) in pairs.items()}


def applicable_mean(values: npt.NDArray[Any]) -> float:
    """Of the values that are not NaN; NaN when there are none."""
    kept = values[~np.isnan(values)]
    return float(kept.mean()) if len(kept) else math.nan


def finite(values: Mapping[str, Any]) -> dict[str, float]:
    """Those that are finite numbers."""
    return {name: value for name, value in values.items() if value is not None and math.isfinite(value)}


class Phases:
    """Wall seconds of a step's phases: `with phases("rollout"): ...`, then `seconds()`.

    Args:
        before_s: of the step that an earlier process spent on it.
    """

    def __init__(self, before_s: float = 0.0) -> None:
        self._seconds: dict[str, float] = {}
        self._start = time.perf_counter() - before_s

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - start

    def seconds(self) -> dict[str, float]:
        """Seconds by phase, and "step" for all of them with what lies between."""
        return {**self._seconds, "step": time.perf_counter() - self._start}


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All records of a run's `metrics.jsonl`.

    Keys that start with "time/" depend on the machine; all others repeat bit for bit on a CPU.
    """
    return list(read_log(path))
