"""Guidance: who is guided and how far, the settings, and the profile's verdict."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from g2rpo_fast.guidance import (
    PROFILE_FRACTIONS,
    GuidanceConfig,
    GuidanceState,
    ProfilePoint,
    guided_lengths,
    initial_state,
    is_clear,
    judge_profile,
)


def test_guided_lengths_worked_example():
    config = GuidanceConfig(unit="tokens", share=1 / 3, reserve=4)
    state = GuidanceState(length=10.9)
    got = guided_lengths(config, state, trace_lens=[30, 0, 6], group_sizes=[6, 6, 4], max_tokens=20)
    assert got == [[10, 10, 0, 0, 0, 0], [0] * 6, [6, 0, 0, 0]]
    # the response cap binds: 20 - 12 tokens; then nothing is left to give
    short = GuidanceConfig(unit="tokens", share=1 / 3, reserve=12)
    assert guided_lengths(short, state, trace_lens=[30], group_sizes=[3], max_tokens=20) == [[8, 0, 0]]
    assert guided_lengths(short, state, trace_lens=[30], group_sizes=[3], max_tokens=9) == [[0, 0, 0]]
    off = GuidanceConfig(enabled=False)
    assert guided_lengths(off, state, trace_lens=[30], group_sizes=[3], max_tokens=20) == [[0, 0, 0]]


def test_fractional_length_follows_each_trace():
    config = GuidanceConfig(unit="fraction", share=0.5)
    state = initial_state(config)
    assert state.length == 0.8
    got = guided_lengths(config, state, trace_lens=[10, 25, 7], group_sizes=[2, 2, 2], max_tokens=100)
    assert got == [[8, 0], [20, 0], [5, 0]]


@pytest.mark.parametrize(
    ("share", "size", "counts"),
    [
        (0.25, 10, (3, 2, 3)),
        (0.1, 30, (3, 3, 3)),
        (0.29, 100, (29, 29, 29)),
        (1 / 6, 12, (2, 2, 2)),
        (1, 5, (5, 5, 5)),
    ],
)
def test_rounding_of_the_share(share: float, size: int, counts: tuple[int, int, int]):
    for rounding, count in zip(("round", "floor", "ceil"), counts):
        config = GuidanceConfig(unit="tokens", share=share, rounding=rounding)
        got = guided_lengths(
            config, GuidanceState(length=3), trace_lens=[9], group_sizes=[size], max_tokens=99
        )
        assert got == [[3] * count + [0] * (size - count)]


groups = st.lists(st.tuples(st.sampled_from([0, 5, 40]), st.integers(1, 9)), min_size=1, max_size=12)


@given(
    groups, st.floats(0, 1), st.sampled_from(["first", "stratified"]), st.integers(0, 50), st.integers(0, 60)
)
def test_guided_members_come_first_and_leave_the_reserve(shape, share, members, step, max_tokens):
    config = GuidanceConfig(unit="tokens", share=share, members=members)
    trace_lens, group_sizes = [list(column) for column in zip(*shape)]
    got = guided_lengths(
        config,
        GuidanceState(length=17.0, step=step),
        trace_lens=trace_lens,
        group_sizes=group_sizes,
        max_tokens=max_tokens,
    )
    assert [len(row) for row in got] == group_sizes
    for row, trace_len in zip(got, trace_lens):
        assert row == sorted(row, reverse=True)
        assert set(row) <= {0, max(min(17, trace_len, max_tokens - 16), 0)}


@given(groups, st.floats(0, 1), st.integers(0, 100))
def test_stratified_meets_alpha_at_every_step_and_in_every_group_on_average(shape, share, start):
    config = GuidanceConfig(unit="tokens", share=share, members="stratified")
    trace_lens, group_sizes = [list(column) for column in zip(*shape)]
    sizes = np.array([size if trace else 0 for trace, size in shape])
    num_groups, budget = len(shape), math.floor(share * sizes.sum() + 0.5 + 1e-9)
    guided_SP = np.array(
        [
            [
                np.count_nonzero(row)
                for row in guided_lengths(
                    config,
                    GuidanceState(length=1.0, step=start + step),
                    trace_lens=trace_lens,
                    group_sizes=group_sizes,
                    max_tokens=99,
                )
            ]
            for step in range(num_groups)
        ]
    )
    quota_P = budget * sizes / max(sizes.sum(), 1)
    assert (guided_SP.sum(axis=1) == budget).all()
    assert (guided_SP <= sizes).all()
    assert (np.abs(guided_SP - quota_P) < 1 + 1e-9).all()
    assert (np.abs(guided_SP.sum(axis=0) - num_groups * quota_P) < 1 + 1e-9).all()


def test_stratified_takes_turns():
    """alpha * G = 1.5 in four groups: 6 of 16 in all, each group 1, 2, 1, 2, ... over the steps."""
    config = GuidanceConfig(unit="tokens", share=0.375, members="stratified")
    counts = [
        [
            np.count_nonzero(row)
            for row in guided_lengths(
                config,
                GuidanceState(length=1.0, step=step),
                trace_lens=[9] * 4,
                group_sizes=[4] * 4,
                max_tokens=99,
            )
        ]
        for step in range(4)
    ]
    assert counts == [[1, 2, 1, 2], [1, 2, 1, 2], [2, 1, 2, 1], [2, 1, 2, 1]]


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"share": 1.5}, "share"),
        ({"share": float("nan")}, "share"),
        ({"share": 1.0, "controller_input": "unguided"}, "share"),
        ({"window": 0}, "window"),
        ({"eps": 0.0}, "eps"),
        ({"max_factor": 1.0}, "max_factor"),
        ({"reserve": 0}, "reserve"),
        ({"step_every": 0}, "step_every"),
        ({"step_factor": 0.0}, "step_factor"),
        ({"concave_power": 2.0}, "concave_power"),
        ({"unit": "tokens", "length_min": 0.5}, "length_min"),
        ({"length_min": 50, "length_max": 40}, "length_min"),
        ({"length_init": 50, "length_max": 40}, "length_init"),
        ({"length_final": 50, "length_max": 40}, "length_final"),
        ({"unit": "fraction", "length_max": 1.5}, "length_max"),
        ({"unit": "fraction", "length_min": 0.0}, "length_min"),
        ({"unit": "fraction", "controller": "official"}, "unit"),
    ],
)
def test_config_names_the_key_what_was_wanted_and_what_came(values: dict, key: str):
    with pytest.raises(ValueError, match=rf"guidance\.{key}: wanted .+, got "):
        GuidanceConfig(**values)


def test_config_defaults_are_the_published_ones_but_for_the_unit():
    config = GuidanceConfig()
    assert (config.counts, config.first, config.lower, config.upper) == ("fraction", 0.8, 0.05, 1.0)
    published = GuidanceConfig(unit="tokens")
    assert (published.first, published.lower, published.upper) == (3072, 1, 3072)
    assert (config.window, config.controller, config.in_loss, config.controller_input) == (
        2,
        "paper",
        True,
        "all",
    )


@pytest.mark.parametrize(
    ("values", "counts"),
    [
        ({}, "fraction"),
        ({"length_init": 1}, "fraction"),
        ({"length_init": 40}, "tokens"),
        ({"length_max": 40}, "tokens"),
        ({"length_final": 3.5}, "tokens"),
        ({"controller": "official"}, "tokens"),
        ({"unit": "fraction", "length_init": 0.5}, "fraction"),
        ({"unit": "tokens", "length_init": 1}, "tokens"),
    ],
)
def test_lengths_count_shares_of_the_trace_unless_they_cannot(values: dict, counts: str):
    assert GuidanceConfig(**values).counts == counts


def profile(*successes: float, num: int = 100) -> list[ProfilePoint]:
    return [ProfilePoint(fraction=f, success=s, num=num) for f, s in zip(PROFILE_FRACTIONS, successes)]


@pytest.mark.parametrize(
    ("successes", "warnings"),
    [
        ((0.007, 0.037, 0.16, 0.23, 0.29), []),  # sort, 8 digits: good
        ((0.045, 0.205, 0.365, 0.44, 0.55), []),
        ((0.0, 0.01, 0.01, 0.02, 0.03), ["cannot help"]),  # sort, 9 digits: useless
        ((0.16, 0.16, 0.11, 0.05, 0.01), ["cannot help", "inverted"]),  # a shortcut beats the trace
        ((0.8, 0.85, 0.9, 0.95, 1.0), ["little to gain"]),
        ((0.0, 0.01, 0.0, 0.02, 0.6), ["only copying the answer"]),
        ((0.3, 0.31, 0.28, 0.32, 0.95), ["only copying the answer"]),
        ((0.9, 0.7, 0.5, 0.4, 0.3), ["little to gain", "inverted"]),
    ],
)
def test_profile_verdicts_on_measured_shapes(successes: tuple[float, ...], warnings: list[str]):
    got = judge_profile(profile(*successes))
    assert len(got) == len(warnings)
    for text, fragment in zip(got, warnings):
        assert fragment in text


def test_profile_does_not_call_noise_an_inversion():
    assert judge_profile(profile(0.125, 0.25, 0.0625, 0.125, 0.1875, num=16)) == ()
    assert judge_profile(profile(0.2, 0.2, 0.2, 0.2, 0.15)) == ()
    flat = np.random.default_rng(0).binomial(32, 0.2, size=(400, 5)) / 32
    alarms = sum(any("inverted" in text for text in judge_profile(profile(*row, num=32))) for row in flat)
    assert alarms <= 20, alarms  # a false alarm in at most 5% of flat profiles


@pytest.mark.parametrize(
    ("successes", "num", "clear"),
    [
        ((0.0, 0.2, 0.4, 0.5, 0.6), 32, True),  # helps
        ((0.0, 0.0, 0.05, 0.1, 0.2), 32, False),
        ((0.0, 0.0, 0.0, 0.0, 0.0), 32, False),  # 3 of 32 is within the interval
        ((0.0, 0.0, 0.0, 0.0, 0.0), 160, True),  # hopeless
        ((0.9, 0.9, 0.9, 0.9, 0.9), 32, True),  # easy
        ((0.5, 0.5, 0.5, 0.5, 0.5), 1000, False),
        ((0.0, 0.0, 0.0, 0.0, 0.0), 0, False),
    ],
)
def test_profile_is_clear_where_intervals_separate(successes: tuple[float, ...], num: int, clear: bool):
    assert is_clear(profile(*successes, num=num)) is clear


def test_profile_interval_is_wilson_s():
    low, high = ProfilePoint(fraction=0.0, success=0.25, num=32).interval
    for bound in (low, high):  # where the score statistic is the quantile
        assert abs(0.25 - bound) / (bound * (1 - bound) / 32) ** 0.5 == pytest.approx(2.576)
    assert 0 < low < 0.25 < high < 1


def test_profile_without_traces():
    assert judge_profile([]) == ("no prompt has a trace: nothing can be guided",)
