"""The order of prompts: epochs, curricula and mixtures, each a pure function of how many were visited."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from g2rpo_fast.config import Config
from g2rpo_fast.config.arguments import read_arguments
from g2rpo_fast.data import DataConfig
from g2rpo_fast.data.levels import levels_of
from g2rpo_fast.order import Order, turns
from g2rpo_fast.types import Prompt

LEVELS = np.asarray([2, 0, 1, 0, 2, 1, 1, 0, 0, 2, 1, 2, 0])
ORDERS = {
    "shuffled": Order(seed=1),
    "as it is": Order(seed=1, shuffle=False),
    "curriculum": Order(seed=1, level_P=LEVELS),
    "mixture": Order(seed=1, weights=(1, 0.25, 3), sizes=(4, 7, 2)),
    "both": Order(seed=1, weights=(1, 0.25, 3), sizes=(4, 7, 2), level_P=LEVELS),
}


@pytest.mark.parametrize("num_prompts", [1, 2, 7, 64])
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_epoch_is_a_permutation(num_prompts: int, shuffle: bool) -> None:
    visited = Order(seed=4, shuffle=shuffle).indices(num_prompts, 0, 3 * num_prompts)
    epochs = [visited[e * num_prompts : (e + 1) * num_prompts] for e in range(3)]
    assert all(sorted(epoch) == list(range(num_prompts)) for epoch in epochs)
    if num_prompts == 64:
        assert (epochs[0] != epochs[1]) == shuffle


@pytest.mark.parametrize("name", ORDERS)
def test_order_resumes_at_any_cursor(name: str) -> None:
    order = ORDERS[name]
    whole = order.indices(13, 0, 80)
    assert order.indices(13, 0, 0) == []
    for cursor in range(60):
        for count in (1, 5, 17):
            assert order.indices(13, cursor, count) == whole[cursor : cursor + count]


def test_order_of_epochs_is_what_it_was() -> None:
    assert len({tuple(Order(seed=1).indices(13, 13 * epoch, 13)) for epoch in range(3)}) == 3
    assert Order(seed=2).indices(13, 0, 13) != Order(seed=1).indices(13, 0, 13)
    assert Order(shuffle=False).indices(5, 3, 6) == [3, 4, 0, 1, 2, 3]
    assert Order().indices(5, 0, 5) == [2, 4, 3, 0, 1]


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_curriculum_is_ascending_and_leaves_equals_in_the_seeded_order(shuffle: bool) -> None:
    plain, ordered = Order(seed=3, shuffle=shuffle), Order(seed=3, shuffle=shuffle, level_P=LEVELS)
    for epoch in range(3):
        without, found = plain.indices(13, 13 * epoch, 13), ordered.indices(13, 13 * epoch, 13)
        assert LEVELS[found].tolist() == [0] * 5 + [1] * 4 + [2] * 4
        for level in range(3):
            assert [i for i in found if LEVELS[i] == level] == [i for i in without if LEVELS[i] == level]
    assert (ordered.indices(13, 0, 13) != ordered.indices(13, 13, 13)) == shuffle


def test_sources_have_their_own_epochs_and_levels() -> None:
    order = ORDERS["both"]
    visited = order.indices(13, 0, 400)
    for start, size in ((0, 4), (4, 7), (11, 2)):
        own = [i for i in visited if start <= i < start + size]
        whole = len(own) // size
        assert whole > 1
        for epoch in range(whole):
            part = own[epoch * size : (epoch + 1) * size]
            assert sorted(part) == list(range(start, start + size))
            assert LEVELS[part].tolist() == sorted(LEVELS[part])


@pytest.mark.parametrize(
    ("weights", "period"),
    [((3, 1), 4), ((0.7, 0.2, 0.1), 10), ((1, 0.25, 3), 17), ((1,), 1), ((0.1, 0.2), 3), ((1e-3, 1), 1001)],
)
def test_shares_are_exact(weights: Sequence[float], period: int) -> None:
    total = sum(Fraction(str(weight)) for weight in weights)
    for begin in (0, 5 * period, 10**9 * period):
        counts = Counter(source for source, _ in turns(weights, begin, period))
        assert [counts[s] for s in range(len(weights))] == [
            Fraction(str(weight)) / total * period for weight in weights
        ]


def test_turns_are_these() -> None:
    assert turns((3, 1), 0, 8) == [(0, 0), (0, 1), (1, 0), (0, 2), (0, 3), (0, 4), (1, 1), (0, 5)]


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=6), st.integers(0, 10**12), st.integers(0, 40))
def test_turns_count_each_source_and_stay_near_its_share(
    weights: list[float], cursor: int, count: int
) -> None:
    found = turns(weights, cursor, count)
    assert len(found) == count
    assert turns(weights, cursor, count + 7)[:count] == found
    ahead = turns(weights, cursor + count, len(weights) * 8)
    for source, weight in enumerate(weights):
        own = [number for one, number in (*found, *ahead) if one == source]
        assert own == list(range(own[0], own[0] + len(own))) if own else True
        share = Fraction(repr(weight)) / sum(Fraction(repr(each)) for each in weights)
        for position, (one, number) in enumerate(found, start=cursor):
            if one == source:
                assert abs(position * share - number) < len(weights)


def prompts(*levels: Any) -> list[Prompt]:
    return [
        Prompt(id=str(n), text="x", token_ids=(1,), answer="1", row={"level": level})
        for n, level in enumerate(levels)
    ]


def test_levels_are_those_of_numbers_or_texts() -> None:
    assert levels_of(prompts(3, 1.5, 3, -2), "level").tolist() == [2, 1, 2, 0]
    assert levels_of(prompts("10", "9", "1e1", "-1.5"), "level").tolist() == [2, 1, 2, 0]
    assert levels_of(prompts("Level 2", "Level 1", "easy"), "level").tolist() == [1, 0, 2]
    assert levels_of(prompts(2**53 + 1, float(2**53), 2**53), "level").tolist() == [1, 0, 0]
    with pytest.raises(
        ValueError, match=r"data\.order_column: wanted numbers or texts in 'level', got 'easy'"
    ):
        levels_of(prompts(1, "easy"), "level")


def test_the_command_line_takes_several_paths_and_their_weights() -> None:
    words = ["--model.path", "m", "--data.path", "a.jsonl", "b.csv", "--data.weights", "3", "0.5"]
    data = read_arguments([*words, "--data.order-column", "level"]).data
    assert (data.path, data.weights, data.order_column) == (("a.jsonl", "b.csv"), (3, 0.5), "level")


def test_what_clashes_is_refused() -> None:
    def config(**data: Any) -> Config:
        sections: Any = {"model": {"path": "m"}, "data": {"path": ["a.jsonl", "b.jsonl"], **data}}
        return Config(**sections, selection="tracker", rounds=())  # pyright: ignore[reportArgumentType]

    with pytest.raises(
        ValueError, match=r"data\.order_column: wanted none with selection = tracker .*'level'"
    ):
        config(order_column="level")
    with pytest.raises(ValueError, match=r"data\.weights: wanted none with selection = tracker"):
        config(weights=(1, 2))
    assert config().data.path == ("a.jsonl", "b.jsonl")
    for weights, said in (
        ((1, 2, 3), "wanted one for each of 2 places of data.path, got 3"),
        ((0, 1), "above 0"),
    ):
        with pytest.raises(ValueError, match=r"^data\.weights") as caught:
            DataConfig(path=("a.jsonl", "b.jsonl"), weights=weights)
        assert said in str(caught.value)
