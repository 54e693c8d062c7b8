"""Responses cut into the items of a list, by tokens and by text."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from g2rpo_fast.config import Config, config_from_dict
from g2rpo_fast.pieces import Cut, Scored
from g2rpo_fast.rollout.text_decoder import text_decoder, token_texts
from g2rpo_fast.types import Rollout
from g2rpo_fast.units import Items, Whole
from scored import CLOCK, rewards_of, row_of
from tiny_tokenizers import byte_level, metaspace


def cut(
    texts: list[str], *, items: Items | None = None, text: str | None = None, finished: bool = True
) -> Cut:
    """Of a response of one token for each of `texts`."""
    row = replace(
        row_of(0, 0, range(len(texts))),
        text="".join(texts) if text is None else text,
        finish_reason="stop" if finished else "length",
    )
    scored = Scored(rollouts=(row,), rewards=rewards_of([[1.0]]), clock=CLOCK, texts_of=lambda rollout: texts)
    (made,) = (items or Items())(scored)
    return made


@pytest.mark.parametrize(
    ("texts", "unit_K", "items"),
    [
        (["a", "\n", "b", "c", "\n", "d", ""], [0, 0, 1, 1, 1, 2, -1], ("a", "bc", "d")),
        (["a\nb", "c", ""], [0, 1, -1], ("a", "bc")),  # a token is of the item that it begins in
        (["a", "\n", "b", "\n", ""], [0, 0, 1, 1, -1], ("a", "b")),  # the last separator ends an item
        (["a", "\n", "\n", "b", ""], [0, 0, 1, 2, -1], ("a", "", "b")),
        ([""], [-1], ()),
    ],
)
def test_tokens_are_of_the_item_that_they_begin_in(
    texts: list[str], unit_K: list[int], items: tuple[str, ...]
) -> None:
    made = cut(texts)
    assert made.unit_K.tolist() == unit_K
    assert made.texts == items


def test_items_beyond_the_most_are_one_unit() -> None:
    made = cut([*"a;b;c;d", ""], items=Items(separator=";", most=2))
    assert made.unit_K.tolist() == [0, 0, 1, 1, 2, 2, 2, -1]
    assert made.texts == ("a", "b", "c;d")


def test_a_separator_may_lie_in_several_tokens() -> None:
    made = cut(["a", "-", "-", "b", "-", "c"], items=Items(separator="--"), finished=False)
    assert made.unit_K.tolist() == [0, 0, 0, 1, 1, 1]
    assert made.texts == ("a", "b-c")


def test_a_stop_string_is_of_no_item_and_a_truncated_end_is() -> None:
    assert cut(["a", "\n", "b", "END"], text="a\nb").unit_K.tolist() == [0, 0, 1, -1]
    assert cut(["a", "\n", "b", ""], finished=False).unit_K.tolist() == [0, 0, 1, 1]


def test_whole_rows_are_not_cut() -> None:
    scored = Scored(rollouts=(row_of(0, 0, [1]),), rewards=rewards_of([[1.0]]), clock=CLOCK)
    assert Whole()(scored) is None


@pytest.mark.parametrize("text", ["a b\nc", "é日本🙂\n x", "  two  spaces\n\nend"])
@pytest.mark.parametrize("kind", ["byte level", "metaspace"])
def test_the_texts_of_tokens_are_the_text(text: str, kind: str) -> None:
    """Joined they are what rewards read, and a character of several tokens is its last one's."""
    pieces = ("a", "b", "c", "\u2581", "\u2581a", "\u2581x")
    tokenizer: Any = (
        byte_level(()) if kind == "byte level" else metaspace(("<s>", "</s>"), pieces, eos_token="</s>")
    )
    decode = text_decoder(tokenizer)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    texts = token_texts(ids, decode)
    assert len(texts) == len(ids)
    assert "".join(texts) == decode(ids)
    assert "\ufffd" not in "".join(texts[:-1])


def test_a_response_that_ends_inside_a_character_shows_so() -> None:
    tokenizer: Any = byte_level(())
    ids = tokenizer("a日", add_special_tokens=False)["input_ids"][:-1]
    texts = token_texts(ids, text_decoder(tokenizer))
    assert "".join(texts) == text_decoder(tokenizer)(ids)


def test_mistakes_are_told_by_name() -> None:
    with pytest.raises(ValueError, match=r"^units\.items\.separator: wanted some text, got ''$"):
        Items(separator="")
    with pytest.raises(ValueError, match=r"^a\.toml: units: wanted one piece, got 2$"):
        config_from_dict({"units": [{"use": "items"}, {"use": "whole"}]}, where="a.toml")


def test_what_credits_units_wants_them() -> None:
    with pytest.raises(ValueError, match=r"units: wanted one that cuts responses, .*ranks, got whole"):
        Config(token_credit=["ranks"])  # pyright: ignore[reportArgumentType]
    assert Config(token_credit=["ranks"], units="items").units == Items()  # pyright: ignore[reportArgumentType]


def test_some_rows_keep_their_units() -> None:
    rows: tuple[Rollout, ...] = tuple(row_of(0, member, [1, 2]) for member in range(3))
    cuts = tuple(Cut(unit_K=np.array([0, member]), texts=("a",)) for member in range(3))
    scored = Scored(rollouts=rows, rewards=rewards_of([[1.0]] * 3), clock=CLOCK, cuts=cuts)
    kept = scored.keep([2, 0]).cuts
    assert kept is not None
    assert [made.unit_K[1] for made in kept] == [2, 0]
