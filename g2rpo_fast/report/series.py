"""A metric of a run as points to draw: at most `MOST_POINTS`, with 95% intervals where they can be had.

Of a longer run each point is the mean of several records in a row. Rates have Wilson's interval (1927), means
of rewards the normal one. Both count rollouts as independent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from g2rpo_fast.report.runs import Run

MOST_POINTS = 80
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


def points(run: Run, name: str) -> list[Point]:
    """Of the records that have the metric; null there is a gap."""
    having = [r for r in (run.before, *run.records) if name in r and "step" in r]
    size = max(1, math.ceil(len(having) / MOST_POINTS))
    return [_pooled(chunk, name) for chunk in _chunks(having, size)]


def _chunks(records: Sequence[Mapping[str, Any]], size: int) -> list[Sequence[Mapping[str, Any]]]:
    return [records[i : i + size] for i in range(0, len(records), size)]


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


def profile(run: Run, name: str) -> list[Point]:
    """Success against the share of the trace given."""
    found = [(p["fraction"], p["success"], p["num"]) for p in run.profile]
    return [Point(100 * x, y, *wilson(y, n)) if n else Point(100 * x, math.nan) for x, y, n in found]


def tokens_per_s(run: Run, name: str) -> list[Point]:
    """Sampled tokens over seconds of whole steps."""
    having = [r for r in run.records if r.get("time/step_s") and "rollout/sampled_tokens" in r]
    chunks = _chunks(having, max(1, math.ceil(len(having) / MOST_POINTS)))
    return [
        Point(
            sum(r["step"] for r in chunk) / len(chunk),
            sum(r["rollout/sampled_tokens"] for r in chunk) / sum(r["time/step_s"] for r in chunk),
        )
        for chunk in chunks
    ]


Series = Callable[[Run, str], list[Point]]
