"""What sampling costs, from a few short calls of the run's own engine.

    seconds = positions of prefixes * position_s + decoding steps * step_s + (row, step) pairs * row_s

A step of one row reads all weights, as a step of many does: `step_s` is that, `row_s` what each row adds.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from g2rpo_fast.assemble import Parts
from g2rpo_fast.types import Ask, Completion, Longs, Request

STEPS = 8
"""Decoding steps of the first calls."""
LEAST_GROUPS = 4
"""Groups of the longer calls, at least, where a step has so many: rows share a step's cost."""


@dataclass(frozen=True)
class Costs:
    """Seconds."""

    position_s: float
    step_s: float
    row_s: float

    def seconds(self, requests: Sequence[Request], length_R: Longs, *, max_rows: int) -> float:
        """Of sampling answers of these lengths, in waves of `max_rows` rows."""
        prefixes = num_positions([request.prompt_ids for request in requests])
        waves = [length_R[start : start + max_rows] for start in range(0, len(length_R), max_rows)]
        steps = sum(int(wave.max()) for wave in waves)
        return prefixes * self.position_s + steps * self.step_s + int(length_R.sum()) * self.row_s


@dataclass(frozen=True, kw_only=True)
class SampledStep:
    """What the calibration found."""

    requests: list[Request]
    """Of all rows of the step."""
    completions: list[Completion]
    """Of the first of them, cut off where time was up."""
    costs: Costs
    whole_s: float | None
    """Seconds that sampling the whole step took, where it was affordable."""


def sample_step(parts: Parts, asks: Sequence[Ask], *, seconds: float) -> SampledStep:
    """Samples some of a step's rows, for some of their tokens: in about `seconds`, more on slow machines."""
    requests = parts.sampler.requests(asks, 1)
    groups = np.array([ask.group for ask in asks])
    one = requests[: int((groups == groups[0]).sum())]
    _timed(parts, one, 1 + STEPS)  # pays for what is done once
    prefill, first = _timed(parts, one, 1), _timed(parts, one, 1 + STEPS)
    num_groups = len(np.unique(groups))
    affordable = int(seconds / 4 / first.seconds)
    count = min(max(affordable, LEAST_GROUPS), num_groups)
    some = requests[: int(np.isin(groups, np.unique(groups)[:count]).sum())][: parts.config.rollout.max_rows]
    of_some = _timed(parts, some, 1)
    longest, most, spent = max(request.max_tokens for request in some), 1 + STEPS, of_some.seconds
    while True:
        last = _timed(parts, some, most)
        spent += last.seconds
        whole = most >= longest or all(c.finish_reason == "stop" for c in last.completions)
        if whole or spent + 2 * last.seconds > seconds:
            break
        most = min(2 * most, longest)
    step_s, row_s = _solved(first.after(prefill), last.after(of_some))
    return SampledStep(
        requests=requests,
        completions=last.completions,
        costs=Costs(of_some.seconds / num_positions([r.prompt_ids for r in some]), step_s, row_s),
        whole_s=last.seconds if whole and len(some) == len(requests) else None,
    )


@dataclass(frozen=True)
class _Call:
    completions: list[Completion]
    seconds: float

    def after(self, prefill: _Call) -> tuple[int, int, float]:
        """(steps, row steps, seconds) beyond a call for one token of each row."""
        lengths = [len(c.token_ids) for c in self.completions]
        steps, rows = max(lengths) - 1, sum(lengths) - len(lengths)
        return steps, rows, max(self.seconds - prefill.seconds, 0.0)


def _timed(parts: Parts, requests: Sequence[Request], most: int) -> _Call:
    cut = [_cut(request, most) for request in requests]
    began = time.perf_counter()
    completions = parts.engine.generate(cut, parts.sampler.sampling)
    return _Call(completions, time.perf_counter() - began)


def _cut(request: Request, most: int) -> Request:
    return replace(request, max_tokens=min(request.max_tokens, most))


def _solved(few: tuple[int, int, float], many: tuple[int, int, float]) -> tuple[float, float]:
    """Seconds of a step and of a row in it; neither is negative, and the call with many rows is met."""
    (t1, r1, s1), (t2, r2, s2) = few, many
    if not t2:
        return 0.0, 0.0
    crossed = t1 * r2 - t2 * r1
    row_s = (t1 * s2 - t2 * s1) / crossed if crossed > 0 else 0.0
    row_s = min(max(row_s, 0.0), s2 / r2 if r2 else 0.0)
    return (s2 - row_s * r2) / t2, row_s


def num_positions(prefixes: Sequence[tuple[int, ...]]) -> int:
    """Positions of the prefix tree of some sequences, sorted neighbours shared."""
    total, before = 0, ()
    for prefix in sorted(set(prefixes)):
        shared = 0
        for one, other in zip(prefix, before):
            if one != other:
                break
            shared += 1
        total, before = total + len(prefix) - shared, prefix
    return total
