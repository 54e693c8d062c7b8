"""Shaping of published methods: numbers worked out by hand, channels that are missing or do not apply."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from g2rpo_fast.config import config_from_dict
from g2rpo_fast.credit import Center, Std, advantages
from g2rpo_fast.pieces import Scored, Shaping
from g2rpo_fast.shaping import (
    SHAPINGS,
    Gate,
    LengthBudget,
    LengthFormat,
    LengthPenalty,
    Repetition,
    Stages,
    Stepwise,
    Weighted,
    WinRate,
)
from g2rpo_fast.types import Rewards, channel_place
from scored import NO_STORE, recipe_with, scored_of

NONE = math.nan


def rows(
    groups: Sequence[int],
    lengths: Sequence[int] | None = None,
    weights: Sequence[float] = (),
    max_tokens: int = 8,
    **channels: Sequence[float],
) -> Scored:
    """Rows with named channels, of which the first counts as accuracy, NaN where it does not apply."""
    reward_RK = np.column_stack([np.asarray(values, np.float64) for values in channels.values()])
    scored = scored_of(reward_RK, groups, lengths=lengths, weights=weights)
    first_R = reward_RK[:, 0]
    rewards = replace(
        scored.rewards,
        channels=tuple(channels),
        accuracy_R=np.where(np.isnan(first_R), np.nan, (first_R > 0).astype(np.float64)),
    )
    return replace(scored, rewards=rewards, clock=replace(scored.clock, max_tokens=max_tokens))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def the_sum_is_of_the_channels(rewards: Rewards) -> bool:
    paid_R = np.nansum(rewards.reward_RK * rewards.weight_K, axis=1)
    return bool(np.allclose(rewards.total_R, paid_R, rtol=0, atol=1e-12))


def test_groups_that_fail_are_graded_by_progress() -> None:
    """Progress 0, 1/2 and 1; not told for the fourth row; a group with one success is left alone."""
    scored = rows(
        [0, 0, 0, 0, 1, 1],
        weights=(1.0, 0.0),
        right=[0, 0, 0, 0, 1, 0],
        progress=[0, 0.5, 1, NONE, 0.5, 0.5],
    )
    shaped = Stepwise()(scored)
    want = [sigmoid(-2.5), 0.5, sigmoid(2.5), 0, 1, 0]
    np.testing.assert_allclose(shaped.total_R, want, rtol=1e-12)
    assert np.round(shaped.total_R[:3], 4).tolist() == [0.0759, 0.5, 0.9241]
    assert np.isnan(shaped.channel("stepwise")[3:]).all()
    assert shaped.accuracy_R is scored.rewards.accuracy_R
    nobody = rows([0, 0], right=[NONE, NONE], progress=[0.5, 0.5])
    assert np.isnan(Stepwise()(nobody).channel("stepwise")).all()


def test_the_thought_is_paid_behind_the_outcome() -> None:
    scored = rows(
        [0, 0, 1, 1, 1],
        outcome=[1, 1, 0, 0, NONE],
        format=[1, 1, 1, 0, 1],
        process=[0.2, 0.8, 0.9, NONE, 0.9],
    )
    shaped = Gate(channel="process")(scored)
    np.testing.assert_allclose(shaped.total_R, [2.2, 2.8, 1.0, 0.0, 1.0], rtol=1e-12)
    np.testing.assert_array_equal(shaped.channel("process"), [0.2, 0.8, 0.0, NONE, 0.0])
    half = math.sqrt(0.5)
    a_R = advantages((Center(), Std(eps=1e-12)), replace(scored, rewards=shaped), NO_STORE)
    np.testing.assert_allclose(a_R[:2], [-half, half], rtol=1e-9)
    np.testing.assert_allclose(
        Gate(channel="process", on="format")(scored).channel("process"), [0.2, 0.8, 0.9, NONE, 0.9]
    )


def test_length_and_format_are_the_whole_reward() -> None:
    """x = 0, 1/4, 1/2, 3/4, 1 of 8 tokens: 0, 3/4, 1, 1/2, -1; at most 0 in a wrong format."""
    lengths = [0, 2, 4, 6, 8] * 2 + [8]
    scored = rows([0] * 11, lengths, right=[1] * 11, format=[1] * 5 + [0] * 5 + [NONE])
    shaped = LengthFormat()(scored)
    np.testing.assert_allclose(shaped.total_R, [1, 1.75, 2, 1.5, 0, 0, 0, 0, 0, -1, -1], atol=1e-12)
    assert shaped.weight_K.tolist() == [0, 0, 1]
    late = LengthFormat(peak=0.75).length_reward(np.asarray([0.75, 0.375, 1.0]))
    np.testing.assert_allclose(late, [1, 0.75, -1], atol=1e-12)


def test_the_most_accurate_groups_pay_for_length() -> None:
    """Right answers of 4 and 8 tokens: z = -+ sqrt(1/2) by the sample's deviation."""
    lengths = [4, 8, 5, 2, 9, 3]
    scored = rows([5, 5, 5, 1, 1, 1], lengths, right=[1, 1, 0, 1, 0, 0])
    shaped = LengthPenalty(top=0.5)(scored)
    short, long = (1 - 0.6 * sigmoid(z) for z in (-math.sqrt(0.5), math.sqrt(0.5)))
    np.testing.assert_allclose(shaped.total_R, [short, long, 0, 1, 0, 0], rtol=1e-12)
    assert np.round(shaped.total_R[:2], 4).tolist() == [0.8019, 0.5981]
    both = LengthPenalty(top=1.0)(scored)
    np.testing.assert_allclose(both.total_R, [short, long, 0, 0.7, 0, 0], rtol=1e-12)
    assert LengthPenalty(top=0.2)(scored).total_R.tolist() == shaped.total_R.tolist()  # one group at least


def test_equally_accurate_groups_are_taken_in_order_and_unjudged_ones_never() -> None:
    scored = rows([0, 0, 1, 1, 2, 2], [1, 1, 1, 1, 1, 1], right=[NONE, NONE, 1, 0, 0, 1])
    paid = LengthPenalty(top=0.5)(scored).channel("length_penalty")
    np.testing.assert_allclose(paid, [0, 0, -0.3, 0, 0, 0], atol=1e-12)
    nobody = rows([0, 0], [3, 4], right=[NONE, NONE])
    assert LengthPenalty()(nobody).channel("length_penalty").tolist() == [0.0, 0.0]


def test_accuracy_weighs_ten_times_a_rule() -> None:
    scored = rows(
        [0] * 5,
        right=[1, 1, 0, 0, NONE],
        format=[1, 0, 1, 0, NONE],
        faithful=[1, 1, 1, 1, NONE],
    )
    recipe = recipe_with(
        shaping=(
            Gate(channel="faithful", on="format"),
            Weighted(accuracy=10.0, weights={"format": 1.0, "faithful": 1.0}),
        )
    )
    shaped = recipe.shaped(scored).rewards
    assert shaped.total_R.tolist() == [12.0, 10.0, 2.0, 0.0, 0.0]
    assert shaped.weight_K.tolist() == [0.0, 0.0, 0.0, 1.0]


def longer(one: str, other: str, prompt: str) -> float:
    """The longer text wins."""
    return 0.5 + 0.5 * np.sign(len(one) - len(other))


def first(one: str, other: str, prompt: str) -> float:
    """Whatever stands first wins: a comparator's bias."""
    return 1.0


def test_the_reward_is_the_share_of_comparisons_won() -> None:
    """Of three rows the first wins 2, the second 1, the third none; two equal rows tie."""
    scored = rows([0, 0, 0, 1, 1], [6, 4, 2, 3, 3], right=[0.9, 0.5, 0.1, 0.3, 0.3])
    for piece in (WinRate(), WinRate(channel="right"), WinRate(comparator=longer)):
        shaped = piece(scored)
        assert shaped.total_R.tolist() == [1.0, 0.5, 0.0, 0.5, 0.5]
        assert shaped.weight_K.tolist() == [0.0, 1.0]
    assert WinRate(comparator=first)(scored).total_R.tolist() == [1.0, 0.5, 0.0, 1.0, 0.0]
    fair = WinRate(comparator=first, both_orders=True)
    assert fair(scored).total_R.tolist() == [0.5] * 5


def test_rows_without_an_opponent_win_nothing() -> None:
    scored = rows([0, 0, 0, 1], right=[1, 0, 0, 1], style=[0.2, NONE, 0.4, 1])
    shaped = WinRate(channel="style")(scored)
    np.testing.assert_array_equal(shaped.channel("win_rate"), [0, NONE, 1, NONE])
    assert shaped.total_R.tolist() == [0.0, 0.0, 1.0, 0.0]


def test_a_comparator_is_a_function_that_tells_the_winners_share() -> None:
    scored = rows([0, 0], right=[1, 0])
    for wrong in (2, -1, None, "first"):
        piece = WinRate(comparator=lambda one, other, prompt, wrong=wrong: wrong)
        with pytest.raises(ValueError, match=r"win_rate\.comparator: wanted a number in \[0, 1\], got"):
            piece(scored)
    with pytest.raises(ValueError, match=r"^shaping\.win_rate\.comparator: importing 'nowhere' for"):
        WinRate(comparator="nowhere:better")
    named = WinRate(comparator=f"{__name__}:longer")
    assert named(rows([0, 0], [2, 1], right=[0, 0])).total_R.tolist() == [1.0, 0.0]


PIECES: dict[str, Shaping] = {
    "stepwise": Stepwise(),
    "gate": Gate(channel="process"),
    "length_format": LengthFormat(),
    "length_penalty": LengthPenalty(),
    "weighted": Weighted(weights={"process": 0.5}),
    "win_rate": WinRate(),
    "length_budget": LengthBudget(),
    "stages": Stages(),
    "repetition": Repetition(n=1),
}


@pytest.mark.parametrize("name", PIECES)
def test_odd_batches(name: str) -> None:
    """None, a group of one, equal rows, channels that do not apply; the sum stays that of the channels."""
    piece = PIECES[name]
    for groups, right in (
        ([], []),
        ([4], [1]),
        ([0, 0, 0], [0, 0, 0]),
        ([0, 1, 0], [NONE, 1, NONE]),
    ):
        other = [NONE] * len(groups)
        scored = rows(groups, [3] * len(groups), right=right, process=other, progress=other, format=other)
        shaped = piece(scored)
        assert np.isfinite(shaped.total_R).all()
        assert shaped.total_R.shape == (len(groups),)
        assert the_sum_is_of_the_channels(shaped)
    scored = rows([0, 0], [1, 5], right=[0, 1], process=[1, 0.5], progress=[0, 1], format=[1, 0])
    assert the_sum_is_of_the_channels(piece(scored))


def test_every_other_piece_is_tried() -> None:
    assert {"overlong", "majority", *PIECES} == set(SHAPINGS)


def test_a_channel_goes_by_its_functions_name_where_one_alone_has_it() -> None:
    channels = ("right", "mine:progress", "yours:style", "ours:style", "style:right")
    assert channel_place(channels, "progress") == channel_place(channels, "mine:progress") == 1
    assert channel_place(channels, "right") == 0
    assert channel_place(channels, "ours:style") == 3
    for wrong in ("style", "rogress", ""):
        with pytest.raises(
            ValueError, match=f"wanted a reward channel from right, mine:progress.* got '{wrong}'"
        ):
            channel_place(channels, wrong)


@pytest.mark.parametrize(
    ("shaping", "told"),
    [
        ({"use": "stepwise"}, r"shaping\.stepwise\.channel: wanted .* from math, got 'progress'"),
        ({"use": "gate", "channel": "a"}, r"shaping\.gate\.channel: wanted a .* from math, got 'a'"),
        ({"use": "gate", "channel": "math", "on": "b"}, r"shaping\.gate\.on: wanted a .* got 'b'"),
        ({"use": "weighted", "weights": {"c": 1}}, r"shaping\.weighted\.weights\.c: wanted a .* got 'c'"),
        ({"use": "length_format"}, r"shaping\.length_format\.format: wanted .* from math, got 'format'"),
        ({"use": "win_rate", "channel": "d"}, r"shaping\.win_rate\.channel: wanted .* from math, got 'd'"),
        ({"use": "length_format", "peak": 1.0}, r"shaping\.length_format\.peak: wanted below 1, got 1"),
        ({"use": "gate"}, r"shaping\.gate: missing 1 required keyword-only argument: 'channel'"),
    ],
)  # fmt: skip
def test_a_missing_channel_is_told_before_the_run(shaping: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told) as refused:
        config_from_dict({"shaping": [shaping]})
    assert "\n" not in str(refused.value)


def test_a_piece_may_read_what_an_earlier_one_adds() -> None:
    chain = [{"use": "overlong"}, {"use": "gate", "channel": "overlong"}]
    assert len(config_from_dict({"shaping": chain}).shaping) == 2
    with pytest.raises(ValueError, match=r"shaping\.gate\.channel: wanted"):
        config_from_dict({"shaping": chain[::-1]})
