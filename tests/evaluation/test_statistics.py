"""pass@k against every subset, the vote, and intervals against known values and their own meaning."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import combinations, product

import numpy as np
import pytest

from g2rpo_fast.evaluation.statistics import bootstrap_interval, majority, pass_at_k, wilson_interval


def test_pass_at_k_is_the_share_of_subsets_with_a_right_one():
    for n in range(1, 8):
        for c, k in product(range(n + 1), range(1, n + 1)):
            subsets = [any(i < c for i in subset) for subset in combinations(range(n), k)]
            assert pass_at_k(n, c, k) == sum(subsets) / len(subsets)
    assert pass_at_k(4, 1, 2) == 0.5


def test_pass_at_k_is_unbiased():
    """Its mean over all outcomes of n samples is the chance that k of them bring a right one."""
    n, k, chance = 6, 3, Fraction(1, 5)
    mean = sum(
        math.comb(n, c) * chance**c * (1 - chance) ** (n - c) * Fraction(pass_at_k(n, c, k))
        for c in range(n + 1)
    )
    assert float(mean) == pytest.approx(float(1 - (1 - chance) ** k), rel=1e-15)


def test_pass_at_k_is_exact_where_factors_multiply_their_rounding():
    wrong = Fraction(math.comb(9_990, 5_000), math.comb(10_000, 5_000))
    assert pass_at_k(10_000, 10, 5_000) == float(1 - wrong)
    assert pass_at_k(10**6, 1, 1) == 1e-6


@pytest.mark.parametrize(("n", "c", "k"), [(4, 1, 0), (4, 1, 5), (4, 5, 1), (4, -1, 1)])
def test_pass_at_k_refuses_what_is_no_count(n, c, k):
    with pytest.raises(ValueError, match="wanted from"):
        pass_at_k(n, c, k)


@pytest.mark.parametrize(
    ("answers", "place"),
    [
        (["1", "2", "2"], 1),
        (["3", "1", "1", "3"], 0),
        ([None, None, "7"], 2),
        ([None, None], None),
        ([], None),
    ],
)
def test_majority_is_the_first_of_the_most_frequent(answers, place):
    assert majority(answers) == place


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [  # Newcombe 1998, Statistics in Medicine 17:857, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (20, 20, 0.8389, 1.0),
    ],
)
def test_wilson_interval_has_known_values(right, count, low, high):
    assert wilson_interval(right, count) == pytest.approx((low, high), abs=5e-5)


def test_wilson_interval_agrees_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    for right, count in ((0, 3), (3, 3), (7, 50), (499, 1000)):
        found = stats.binomtest(right, count).proportion_ci(method="wilson")
        assert wilson_interval(right, count) == pytest.approx((found.low, found.high), abs=1e-12)


def test_wilson_bounds_are_the_shares_that_are_just_compatible():
    """At a bound p the distance |right / count - p| is z standard deviations of p."""
    for right, count in ((3, 17), (90, 100)):
        for bound in wilson_interval(right, count):
            assert abs(right / count - bound) / math.sqrt(bound * (1 - bound) / count) == pytest.approx(
                1.959964
            )


def test_bootstrap_interval_repeats_by_its_seed_and_is_that_of_the_mean():
    value_P = (np.arange(400) % 4 == 0).astype(np.float64)
    low, high = bootstrap_interval(value_P, seed=0)
    assert (low, high) == bootstrap_interval(value_P, seed=0) != bootstrap_interval(value_P, seed=1)
    spread = 1.96 * math.sqrt(0.25 * 0.75 / 400)
    assert (low, high) == pytest.approx((0.25 - spread, 0.25 + spread), abs=0.01)
    assert bootstrap_interval(np.ones(5), seed=0) == (1.0, 1.0)
    with pytest.raises(ValueError, match="wanted at least one problem"):
        bootstrap_interval(np.zeros(0), seed=0)
