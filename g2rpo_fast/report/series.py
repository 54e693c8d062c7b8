"""A metric of a run as points to draw: at most `MOST_POINTS`, with 95% intervals where they can be had.

Of long runs each point is the mean of some steps in a row, the same ones in all runs. Rates have Wilson's
interval (1927), means of rewards the normal one. Both count rollouts as independent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from g2rpo_fast.report.runs import Run

MOST_POINTS = 40
Z = 1.959964
"""Of 95%."""


class Point(NamedTuple):
    """`value` NaN = a gap; `low` and `high` NaN = no interval."""

    x: float
    value: float
    low: float = math.nan
    high: float = math.nan


def wilson(share: float, count: float) -> tuple[float, float]:
    """95% interval of a rate; NaN where nothing was counted.

    Worked example: 0 of 10 -> (0, 0.278).
    """
    if not count or math.isnan(share):
        return math.nan, math.nan
    centre = (share + Z * Z / (2 * count)) / (1 + Z * Z / count)
    half = Z / (1 + Z * Z / count) * math.sqrt(share * (1 - share) / count + (Z / (2 * count)) ** 2)
    return max(centre - half, 0.0), min(centre + half, 1.0)


def window(runs: Sequence[Run]) -> int:
    """Steps that a point is the mean of."""
    return max(1, math.ceil(max(run.steps for run in runs) / MOST_POINTS))


def points(run: Run, name: str, steps: int) -> list[Point]:
    """Of the records that have the metric, the mean of each `steps`; null is a gap."""
    having = [r for r in (run.before, *run.records) if name in r]
    return [_pooled(chunk, name) for chunk in _chunks(having, steps)]


def _chunks(records: Sequence[Mapping[str, Any]], steps: int) -> list[list[Mapping[str, Any]]]:
    """Steps 1 to `steps`, the next as many, and so on."""
    found = groupby(records, key=lambda record: (record["step"] - 1) // steps)
    return [list(chunk) for _, chunk in found]


def _pooled(chunk: Sequence[Mapping[str, Any]], name: str) -> Point:
    """Weighted by rows where they are known."""
    x = sum(record["step"] for record in chunk) / len(chunk)
    counts = [count_of(record, name) for record in chunk]
    known = [
        (float(record[name]), count or 1.0, record)
        for record, count in zip(chunk, counts, strict=True)
        if isinstance(record[name], (int, float))
    ]
    total = sum(weight for _, weight, _ in known)
    if not total:
        return Point(x, math.nan)
    value = sum(v * weight for v, weight, _ in known) / total
    if not all(counts):
        return Point(x, value)
    if name.endswith(RATES):
        return Point(x, value, *wilson(value, total))
    deviations = [record.get(f"{name}_std") for _, _, record in known]
    if None in deviations:
        return Point(x, value)
    squares = sum(w * float(s or 0.0) ** 2 for (_, w, _), s in zip(known, deviations, strict=True))
    half = Z * math.sqrt(squares) / total
    return Point(x, value, value - half, value + half)


RATES = ("/accuracy", "/finished")


def count_of(record: Mapping[str, Any], name: str) -> float:
    """Rollouts that a mean is over; 0 = not said."""
    prefix = name.rpartition("/")[0]
    if prefix == "eval":
        return record.get("eval/rows", 0.0)
    if not prefix.startswith("rollout") or not name.endswith((*RATES, "/reward")):
        return 0.0
    return record.get("rollout/rows", 0.0) * record.get(f"{prefix}/share", 0.0)


def profile(run: Run, name: str, steps: int) -> list[Point]:
    """Success against the share of the trace given."""
    found = [(p["fraction"], p["success"], p["num"]) for p in run.profile]
    return [Point(100 * x, y, *wilson(y, n)) if n else Point(100 * x, math.nan) for x, y, n in found]


def tokens_per_s(run: Run, name: str, steps: int) -> list[Point]:
    """Sampled tokens over seconds of whole steps."""
    having = [r for r in run.records if r.get("time/step_s") and "rollout/sampled_tokens" in r]
    return [
        Point(
            sum(r["step"] for r in chunk) / len(chunk),
            sum(r["rollout/sampled_tokens"] for r in chunk) / sum(r["time/step_s"] for r in chunk),
        )
        for chunk in _chunks(having, steps)
    ]


Series = Callable[[Run, str, int], list[Point]]
