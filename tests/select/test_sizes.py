"""Group sizes from success rates: a knapsack, and one rollout after another."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from g2rpo_fast.order import Order
from g2rpo_fast.pieces import PromptStore
from g2rpo_fast.select import Knapsack, MarginalGain
from g2rpo_fast.select.knapsack import best_sizes, worth
from g2rpo_fast.select.marginal_gain import utility
from g2rpo_fast.select.recent import BITS, NUMBER, Sized, dealt
from g2rpo_fast.types import Prompt
from scored import CLOCK, outcome_of, scored_of

PROMPTS = [Prompt(id=f"train:{i}", text="", token_ids=(i,), answer="") for i in range(5)]
IN_ORDER = replace(CLOCK, order=Order(shuffle=False))


def store_of(rates: list[float | None]) -> PromptStore:
    """16 outcomes of each prompt with these success rates; None = one outcome less than counts."""
    bits = np.array([0.0 if rate is None else 2.0 ** round(16 * rate) - 1 for rate in rates])
    number = np.array([7.0 if rate is None else 16.0 for rate in rates])
    store = PromptStore.of([prompt.id for prompt in PROMPTS[: len(rates)]], Knapsack().columns())
    return store.put(**{BITS: bits, NUMBER: number})


def sizes_of(piece: Sized, rates: list[float | None], size: int = 8) -> list[int]:
    count = len(rates)
    chosen = piece.choose(PROMPTS[:count], store_of(rates), IN_ORDER, count=count, size=size)
    assert [each.prompt.id for each in chosen] == [f"train:{i}" for i in range(count)]
    assert sum(each.size for each in chosen) == count * size
    return [each.size for each in chosen]


def test_worth_is_the_worked_example() -> None:
    got = [worth(np.array([8]), p)[0] for p in (0.1, 0.25, 0.3, 0.5)]
    np.testing.assert_allclose(got, [0.0461, 0.1265, 0.1385, 0.1240], atol=6e-5)
    assert worth(np.array([2]), 0.5)[0] == 0.0625
    assert worth(np.array([1, 40]), 1.0).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("rates", [(0.1, 0.3, 0.9), (0.5, 0.5, 0.5), (0.25, 0.0625, 0.75), (1.0, 0.2, 0.0)])
def test_the_knapsack_is_the_best_of_all_ways(rates: tuple[float, ...]) -> None:
    ways = [n for n in product(range(2, 6), repeat=3) if sum(n) == 9]
    assert len(ways) == 10

    def summed(sizes: tuple[int, ...]) -> float:
        return sum(float(worth(np.array([n]), p)[0]) for n, p in zip(sizes, rates, strict=True))

    got = tuple(best_sizes(np.array(rates), 9, 2, 5).tolist())
    assert got in ways
    assert summed(got) == pytest.approx(max(map(summed, ways)), rel=1e-12)


def test_what_is_certain_gets_the_least_and_unknown_prompts_the_group_size() -> None:
    assert sizes_of(Knapsack(), [1.0, 0.0625, None]) == [2, 14, 8]
    assert sizes_of(Knapsack(), [None, None]) == [8, 8]
    assert sizes_of(Knapsack(most=9), [1.0, 0.0625, None]) == [7, 9, 8]  # no group beyond the bound
    assert sizes_of(Knapsack(), [1.0, 0.5], size=1) == [1, 1]  # nor a least above the group size


def test_the_surplus_goes_to_prompts_without_a_success() -> None:
    """p = 1/2: floor(ln .1 / ln .5) = 3 beside the least is enough; 9 of 24 - 6 rollouts are left over."""
    assert sizes_of(Knapsack(), [0.5, 0.0, 1.0]) == [5, 17, 2]
    assert sizes_of(Knapsack(), [0.0, 1.0, 0.0], size=5) == [7, 2, 6]
    assert sizes_of(Knapsack(), [1.0, 1.0]) == [8, 8]
    assert sizes_of(Knapsack(), [0.5, 1.0]) == [14, 2]  # none without a success: nothing is surplus


def test_utility_is_the_worked_example() -> None:
    np.testing.assert_allclose([utility(n, 0.5) for n in (1, 2, 4, 8)], [0, 0.5, 1.75, 3.96875])


def test_rollouts_go_where_the_next_one_gains_most() -> None:
    """From 2 each: p = 1/2 gains .625, .625, .594, ...; p = 1/4 gains .609, .75, ...; p = 1 nothing."""
    assert sizes_of(MarginalGain(), [0.5, 1.0], size=4) == [6, 2]
    assert sizes_of(MarginalGain(), [0.0, 0.0], size=3) == [3, 3]  # of equal gains the smaller group
    assert sizes_of(MarginalGain(), [0.25, 0.5, None], size=3) == [2, 4, 3]
    assert sizes_of(MarginalGain(), [0.25, 0.5, None], size=4) == [4, 4, 4]
    rates = np.array([0.25, 0.5])
    assert MarginalGain().sizes(rates, 40, 2, 128).tolist() == [36, 4]  # the rarer success gains on
    assert MarginalGain().sizes(rates, 14, 2, 9).tolist() == [9, 5]


def test_outcomes_are_remembered_up_to_the_window() -> None:
    piece = Knapsack(window=3, known=2)
    store = store_of([0.0, 0.0, 0.0]).put(**{BITS: np.zeros(3), NUMBER: np.zeros(3)})
    once = piece.learned(store, outcome_of(scored_of([[1.0], [0.0], [1.0]], [0, 0, 1])))
    assert once.columns[BITS].tolist() == [0b10, 0b1, 0]
    assert once.columns[NUMBER].tolist() == [2.0, 1.0, 0.0]
    np.testing.assert_array_equal(piece.rates(once, np.arange(3)), [0.5, np.nan, np.nan])
    twice = piece.learned(once, outcome_of(scored_of([[1.0], [1.0]], [0, 0])))
    assert (twice.columns[BITS][0], twice.columns[NUMBER][0]) == (0b011, 3.0)
    assert piece.rates(twice, np.arange(1)) == 2 / 3


def test_only_what_the_model_does_alone_counts() -> None:
    scored = scored_of([[1.0], [1.0], [1.0]], [0, 0, 0])
    guided, hinted, plain = scored.rollouts
    rows = (replace(guided, guidance_len=1), replace(hinted, sampling_prompt_ids=(9,)), plain)
    after = Knapsack().learned(store_of([None]), outcome_of(replace(scored, rollouts=rows)))
    assert after.columns[NUMBER].tolist() == [8.0]


def test_what_is_dealt_is_even_and_bounded() -> None:
    size_C = np.array([2, 2, 5, 2])
    assert dealt(size_C, 7, (np.array([0, 1]), np.array([3])), 5).tolist() == [5, 5, 5, 3]
    assert dealt(size_C, 3, (np.array([0, 1]),), 9).tolist() == [4, 3, 5, 2]


@pytest.mark.parametrize(("key", "value"), [("window", 53), ("least", 0), ("sure", 1.0)])
def test_settings_out_of_bounds_are_refused(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"selection\.knapsack\.{key}: wanted"):
        Knapsack(**{key: value})  # pyright: ignore[reportArgumentType]
