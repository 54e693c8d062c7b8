"""Items of lists against the items of the same rank: by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from g2rpo_fast.credit.tokens import Ranks
from g2rpo_fast.own import PieceError
from g2rpo_fast.pieces import RowTokens, Scored
from g2rpo_fast.types import Rollout
from g2rpo_fast.units import Items
from scored import CLOCK, rewards_of, row_of


def hits(items: list[str], answer: str, rollout: Rollout) -> list[float]:
    return [float(item == "+") for item in items]


def lists(texts: list[str], *, finished: bool = True, most: int = 20) -> tuple[Scored, RowTokens]:
    """One group; of each response a token a character, and one that ends it."""
    rows = tuple(
        replace(row_of(0, member, range(len(text) + 1)), text=text, finish_reason="stop")
        for member, text in enumerate(texts)
    )
    scored = Scored(
        rollouts=rows,
        rewards=rewards_of([[0.0]] * len(texts)),
        clock=CLOCK,
        texts_of=lambda rollout: [*rollout.text, ""],
    )
    cuts = Items(separator=";", most=most)(scored)
    row_N = np.repeat(np.arange(len(texts)), [len(text) + 1 for text in texts])
    tokens = RowTokens(
        id_N=np.zeros_like(row_N),
        row_N=row_N,
        place_N=np.zeros_like(row_N),
        rollout_logp_N=np.zeros(len(row_N)),
        unit_N=np.concatenate([made.unit_K for made in cuts]),
    )
    return replace(scored, cuts=cuts), tokens


def advantages(texts: list[str], **settings: Any) -> np.ndarray:
    scored, _ = lists(texts)
    return Ranks(function=hits, length=2, **settings).advantages(scored)


def test_a_rank_is_compared_with_the_same_rank_of_the_group() -> None:
    """Hits of rank 0: 1 0 0, of rank 1: 1 1 0. Sample standard deviations of both: .57735."""
    made = advantages(["+;+", "-;+", "-;-"], reward="own", eps=1e-12)
    np.testing.assert_allclose(made[:, 0], np.array([2, -1, -1]) / 3 / 0.5773502691896258, rtol=1e-9)
    np.testing.assert_allclose(made[:, 1], np.array([1, 1, -2]) / 3 / 0.5773502691896258, rtol=1e-9)


def test_two_items_are_independent() -> None:
    """Swapping the second items of two rows leaves the advantages of all first ones."""
    one, other = advantages(["+;+", "-;-"], reward="own"), advantages(["+;-", "-;+"], reward="own")
    np.testing.assert_array_equal(one[:, 0], other[:, 0])
    np.testing.assert_array_equal(one[:, 1], -other[:, 1])


def test_decayed_rewards_answer_for_what_comes_after() -> None:
    """R of rank 0: d0 h0 + d1 h1 with d = 1, 1 / log2 3; of rank 1: d1 h1."""
    made = advantages(["+;+", "-;+"], reward="decayed", eps=1e-12)
    np.testing.assert_allclose(made[:, 0], np.array([1, -1]) / np.sqrt(2), rtol=1e-9)  # 1.6309 and .6309
    np.testing.assert_allclose(made[:, 1], 0, atol=1e-9)
    eps = 1.0
    made = advantages(["+;+", "-;-"], reward="decayed", eps=eps)
    total = 1 + 1 / np.log2(3)
    np.testing.assert_allclose(made[0, 0], (total / 2) / (total / np.sqrt(2) + eps), rtol=1e-12)


def test_tokens_get_their_item_s_and_the_ends_their_own() -> None:
    """Two items end in time; one is too early, three are too long: what is beyond gets the penalty."""
    scored, tokens = lists(["+;-", "+", "-;+;+"])
    piece = Ranks(function=hits, length=2, reward="own", penalty=0.1)
    item_RK = piece.advantages(scored)
    made = piece(np.full(len(tokens.row_N), 9.0), tokens, scored)
    wanted = [
        *[item_RK[0, 0]] * 2, item_RK[0, 1], 0.1,
        item_RK[1, 0], -0.1,
        *[item_RK[2, 0]] * 2, *[item_RK[2, 1]] * 2, -0.1, -0.1,
    ]  # fmt: skip
    np.testing.assert_allclose(made, wanted, rtol=1e-12)
    assert item_RK[1, 1] == item_RK[0, 1] < item_RK[2, 1]  # an item that is not there is a miss


def test_without_a_function_the_answers_lines_are_hits_once() -> None:
    scored, _ = lists(["72; 5", "72;72"])  # the answer of all rows is 72
    made = Ranks(length=2, reward="own").advantages(scored)
    np.testing.assert_array_equal(made, 0)
    scored, _ = lists(["72;5", "5;72"])
    assert (Ranks(length=2, reward="own").advantages(scored)[:, 0] * [1, -1] > 0).all()


@pytest.mark.parametrize("graded", [[1.0], "ab", None, [1.0, float("nan")], [1.0, "x"]])
def test_grades_that_are_none_are_told(graded: Any) -> None:
    scored, _ = lists(["+;+"])
    piece = Ranks(function=lambda items, answer, rollout: graded, length=2)
    with pytest.raises(PieceError, match=r"^token_credit\.ranks\.function: wanted 2 finite numbers, one an"):
        piece.advantages(scored)
