"""Statistics of groups, the same to the last bit on every machine.

Every sum is `np.bincount`'s: one addition a row, in the order of the rows, whatever the processor. Dimension
key: R rows, Q groups.
"""

from __future__ import annotations

import math

import numpy as np

from g2rpo_fast.types import Bools, Doubles, Ints, Longs

TIE = 64 * np.finfo(np.float64).eps
"""A group whose values differ by less, relatively, differs by rounding: its deviations are exactly 0. So is
that of a value no further from the mean: a row of it costs nothing."""


def deviations(
    value_R: Doubles, group_R: Ints | Longs, count_R: Doubles | None = None
) -> tuple[Doubles, Doubles]:
    """([R] value minus the group's mean, [R] the group's standard deviation), float64.

    A value counts once, and the variance has n - 1 (of one value it is 0). With `count_R` it counts so many
    times, and the variance has n. Ties are exactly 0. Group ids may be any numbers in any order.
    """
    group_R = np.unique(group_R, return_inverse=True)[1]
    low_Q, high_Q = (np.full(group_R.max(initial=-1) + 1, far) for far in (np.inf, -np.inf))
    np.minimum.at(low_Q, group_R, value_R)
    np.maximum.at(high_Q, group_R, value_R)
    rounding_Q = TIE * np.maximum(np.abs(low_Q), np.abs(high_Q))
    tied_Q = high_Q - low_Q <= rounding_Q
    # From the group's minimum: equal values give exact zeros, and a common offset costs no digits.
    above_R = np.where(tied_Q[group_R], 0.0, value_R - low_Q[group_R])
    once_R = np.ones_like(value_R) if count_R is None else count_R
    size_Q = np.bincount(group_R, once_R)
    mean_Q = np.bincount(group_R, once_R * above_R) / np.maximum(size_Q, 1)
    deviation_R = above_R - mean_Q[group_R]
    deviation_R[np.abs(deviation_R) <= rounding_Q[group_R]] = 0.0
    freedom_Q = np.maximum(size_Q - (count_R is None), 1)
    variance_Q = np.bincount(group_R, once_R * deviation_R**2) / freedom_Q
    return deviation_R, np.sqrt(variance_Q)[group_R]


def totals(value_R: Doubles, group_R: Ints | Longs) -> Doubles:
    """[R] the sum over the row's group, float64."""
    index_R = np.unique(group_R, return_inverse=True)[1]
    return np.asarray(np.bincount(index_R, value_R), np.float64)[index_R]


def differs(value_R: Doubles, group_R: Ints | Longs) -> Bools:
    """[R] whether the row's group has members of different value, by more than rounding."""
    return deviations(value_R, group_R)[1] > 0


def sigmoids(value_R: Doubles) -> Doubles:
    """[R] 1 / (1 + exp(-value)), by the C library: NumPy's own exp differs between processors. NaN stays."""
    return np.asarray([0.5 + 0.5 * math.tanh(value / 2) for value in value_R.tolist()], np.float64)


def whole(value_R: Doubles) -> Longs:
    """[R] group ids that make one group of the batch."""
    return np.zeros(len(value_R), np.int64)
