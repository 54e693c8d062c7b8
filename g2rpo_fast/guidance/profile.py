"""The guidance profile: success rate given the first f of the trace, on a small sample, before training.

It decides whether guidance can help at all: only where success is rare alone and rises with f. The verdict is
made here; the sampling is the caller's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

PROFILE_FRACTIONS = (0.0, 0.25, 0.5, 0.75, 1.0)

HOPELESS = 0.05
"""Success with the whole trace below which guidance has nothing to give (at 0 to 0.05 it was useless)."""
EASY = 0.5
"""Success without guidance from which the reward is no longer sparse."""
Z = 2.576
"""Of the intervals that end a profile early: 99%, since they are looked at after every round."""
NOISE = 3.0
"""Standard errors that a fall must exceed: ten pairs are compared."""


@dataclass(frozen=True, kw_only=True)
class ProfilePoint:
    """Success rate of `num` samples that started from the first `fraction` of their trace.

    Samples are those that the accuracy channel applies to; without any `success` is 0."""

    fraction: float
    success: float
    num: int

    @property
    def standard_error(self) -> float:
        """Binomial, of the rate with one success and one failure added: 0 of 4 is not exact."""
        rate = (self.success * self.num + 1) / (self.num + 2)
        return math.sqrt(rate * (1 - rate) / (self.num + 2))

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's, at 99%, as if all samples were independent."""
        if not self.num:
            return 0.0, 1.0
        shrink = 1 + Z**2 / self.num
        middle = self.success + Z**2 / (2 * self.num)
        half = Z * math.sqrt(self.success * (1 - self.success) / self.num + Z**2 / (4 * self.num**2))
        return max((middle - half) / shrink, 0.0), min((middle + half) / shrink, 1.0)


def is_clear(points: Sequence[ProfilePoint]) -> bool:
    """Whether more samples would not change what is said of guidance, by Wilson intervals.

    It helps: success with some part of the trace lies above success without, and with the whole trace above
    `HOPELESS`. It cannot: success with the whole trace lies below that. Or there is little to gain: success
    without lies above `EASY`.
    """
    alone, *parts, whole = sorted(points, key=lambda point: point.fraction)
    helps = any(part.interval[0] > alone.interval[1] for part in parts) and whole.interval[0] > HOPELESS
    return helps or whole.interval[1] < HOPELESS or alone.interval[0] > EASY


def judge_profile(points: Sequence[ProfilePoint]) -> tuple[str, ...]:
    """Warnings about a profile, one sentence each; empty = guidance can be expected to help."""
    by_fraction = sorted(points, key=lambda point: point.fraction)
    if not by_fraction:
        return ("no prompt has a trace: nothing can be guided",)
    if not any(point.num for point in points):
        return ("the accuracy channel applies to none of the prompts: nothing was measured",)
    verdicts = (
        _hopeless(by_fraction[-1]),
        _easy(by_fraction[0]),
        _copied(by_fraction),
        _inverted(by_fraction),
    )
    return tuple(verdict for verdict in verdicts if verdict)


def _hopeless(longest: ProfilePoint) -> str:
    if longest.success >= HOPELESS:
        return ""
    return (
        f"guidance cannot help: even given the first {longest.fraction:.0%} of the trace, only "
        f"{longest.success:.1%} of {longest.num} samples succeed; the rest after the trace is the obstacle"
    )


def _easy(shortest: ProfilePoint) -> str:
    if shortest.fraction > 0 or shortest.success < EASY:
        return ""
    return (
        f"little to gain: {shortest.success:.0%} of {shortest.num} samples succeed without guidance, "
        f"and guidance pays where reward is sparse"
    )


def _copied(points: Sequence[ProfilePoint]) -> str:
    """Success that is flat until the whole trace is given."""
    alone, *parts, whole = points
    if not parts or alone.success >= EASY:
        return ""
    best = max(parts, key=lambda part: part.success)
    if best.success > alone.success + HOPELESS or whole.interval[0] <= best.interval[1]:
        return ""
    return (
        f"guidance cannot help: success is {whole.success:.1%} given the whole trace and at most "
        f"{best.success:.1%} given less, {alone.success:.1%} without: only copying the answer from the "
        f"trace's end succeeds, which teaches nothing"
    )


def _inverted(points: Sequence[ProfilePoint]) -> str:
    """The pair with the clearest fall, if it is beyond the noise."""
    falls = [(_fall(less, more), less, more) for less, more in combinations(points, 2)]
    size, less, more = max(falls, key=lambda fall: fall[0], default=(0.0, points[0], points[0]))
    if size <= NOISE:
        return ""
    return (
        f"inverted: success falls from {less.success:.1%} given {less.fraction:.0%} of the trace to "
        f"{more.success:.1%} given {more.fraction:.0%} ({size:.1f} standard errors): "
        f"the traces mislead this model"
    )


def _fall(less: ProfilePoint, more: ProfilePoint) -> float:
    """How far success falls from less guidance to more, in standard errors."""
    return (less.success - more.success) / math.hypot(less.standard_error, more.standard_error)
