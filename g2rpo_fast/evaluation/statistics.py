"""What is said of samples: pass@k, the majority's answer, and how far a figure may be from the truth.

    pass@k = 1 - C(n - c, k) / C(n, k)          (Chen et al. 2021, arXiv 2107.03374, eq. 1)

for a problem with n samples of which c are right: the share of the subsets of k samples with a right one
among them, so its mean is P(one of k samples is right), for any n >= k.

Dimension key: P problems.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from g2rpo_fast.types import Doubles

CONFIDENCE = 0.95
RESAMPLES = 2000
"""Of the problems, for an interval by bootstrap."""

Interval = tuple[float, float]


def pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    """See above. Counted in whole numbers and divided once: exact to half a unit in the last place.

    Raises:
        ValueError: k is not from 1 to `num_samples`, or more are right than there are.
    """
    if not 1 <= k <= num_samples:
        raise ValueError(f"k: wanted from 1 to {num_samples} (the samples of a problem), got {k}")
    if not 0 <= num_right <= num_samples:
        raise ValueError(f"num_right: wanted from 0 to {num_samples}, got {num_right}")
    subsets = math.comb(num_samples, k)
    return (subsets - math.comb(num_samples - num_right, k)) / subsets


def majority(answers: Sequence[str | None]) -> int | None:
    """The first sample that gives the most frequent answer (of several such answers, the one given first);
    None where no sample gives one."""
    votes = Counter(answer for answer in answers if answer is not None)
    return answers.index(votes.most_common(1)[0][0]) if votes else None


def wilson_interval(num_right: int, count: int, confidence: float = CONFIDENCE) -> Interval:
    """Of a share of independent cases: the shares p for which `num_right` of `count` is within z standard
    deviations of p (Wilson 1927). Unlike p +- z s it stays in [0, 1], and has a width at 0 and 1."""
    if not 0 <= num_right <= count or count < 1:
        raise ValueError(f"num_right: wanted from 0 to a count of at least 1, got {num_right} of {count}")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, spread = num_right / count, z * z / count
    middle = share + spread / 2
    half = z * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    low, high = (middle - half) / (1 + spread), (middle + half) / (1 + spread)
    return (0.0 if num_right == 0 else low, 1.0 if num_right == count else high)


def bootstrap_interval(
    value_P: Doubles, *, seed: int, resamples: int = RESAMPLES, confidence: float = CONFIDENCE
) -> Interval:
    """Of the mean over problems: the percentiles of the means of as many problems drawn with replacement.

    Problems are drawn, not samples: those of one problem are alike. The same seed draws the same ones.
    """
    if not len(value_P):
        raise ValueError("value_P: wanted at least one problem, got none")
    rng = np.random.default_rng(seed)
    means = [value_P[rng.integers(len(value_P), size=len(value_P))].mean() for _ in range(resamples)]
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
