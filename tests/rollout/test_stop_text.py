"""What ends a response, and its text: against a search of the whole text after every token."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest

from g2rpo_fast.rollout.stop_text import ResponseText, StopText
from g2rpo_fast.rollout.text_decoder import TextDecoder, text_decoder
from g2rpo_fast.types import Sampling
from tiny_tokenizers import CHATML, CHATML_TAGS, byte_level, metaspace, word_piece

PIECES = ("a", "b", ".", "#", "\u2581", "\u2581a", "\u2581b", "\u2581.")
TOKENIZERS: dict[str, Any] = {
    "byte level": byte_level(CHATML_TAGS, eos_token="<|endoftext|>", template=CHATML),
    "metaspace": metaspace(("<s>", "</s>"), PIECES, bos_token="<s>", eos_token="</s>"),
    "word piece": word_piece(
        ("[UNK]", "[PAD]"),
        ("a", "##a", "b", "##b", ".", "!", "#", "n't"),
        unk_token="[UNK]",
        pad_token="[PAD]",
    ),
}
TEXTS = {
    "byte level": ("é", "日本", "🙂", " a", "#", "\n", "b", ".", "<think>"),
    "metaspace": (),
    "word piece": (),
}
UNFINISHED = "\ufffd"


def random_ids(tokenizer: Any, texts: Sequence[str], hidden: Sequence[int], draw: random.Random) -> list[int]:
    if texts:
        text = "".join(draw.choices(texts, k=draw.choice((3, 20))))
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    else:  # mostly pieces; three byte tokens are the letters of one character
        sequences = [[i] for i in range(len(tokenizer) - 8, len(tokenizer))]
        if "<0xE6>" in tokenizer.get_vocab():
            sequences += 3 * [tokenizer.convert_tokens_to_ids(["<0xE6>", "<0x97>", "<0xA5>"])]
            sequences += 2 * [tokenizer.convert_tokens_to_ids(["<0x0A>"])]
        ids = [i for part in draw.choices(sequences, k=draw.choice((3, 40))) for i in part]
    for _ in range(draw.choice((0, 0, 3, 40))):
        ids.insert(draw.randrange(len(ids)), draw.choice(hidden))
    return ids


def stops_of(text: str, names: Sequence[str], draw: random.Random) -> tuple[str, str]:
    """Pieces of the text and hidden tokens' names."""
    places = [draw.randrange(max(1, len(text))) for _ in range(2)]
    pieces = [text[place : place + draw.choice((1, 2, 3, 7))].replace(UNFINISHED, "") for place in places]
    first, second = (piece or draw.choice(names) for piece in pieces)
    return first, draw.choice((second, draw.choice(names)))


def whole_search(ids: list[int], given: int, stops: Sequence[str], decode: TextDecoder) -> int | None:
    """The first length at which the text has a stop string that ends behind the given tokens' text."""

    def has(length: int, stop: str) -> bool:
        shown = decode.showing(stop)
        texts = [shown(ids[:n]).rstrip(UNFINISHED) for n in range(max(0, given - 4), given + 1)]
        return shown(ids[:length]).find(stop, max(0, max(map(len, texts)) - len(stop) + 1)) >= 0

    return next((n for n in range(given + 1, len(ids) + 1) if any(has(n, s) for s in stops)), None)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_stop_strings_are_found_where_a_search_of_the_whole_text_finds_them(kind: str) -> None:
    draw, tokenizer = random.Random(kind), TOKENIZERS[kind]
    decode = text_decoder(tokenizer)
    found = 0
    for _ in range(400):
        ids = random_ids(tokenizer, TEXTS[kind], sorted(decode.hidden), draw)
        stops = stops_of(decode(ids), list(decode.hidden.values()), draw)
        given = draw.choice((0, draw.randrange(len(ids))))
        every = draw.choice((1, 2, 4, 7, 100))
        search = StopText(stops, decode)
        got = None
        for seen in range(given, len(ids), every):
            got = search.length_at_stop(ids[: seen + every], seen)
            if got is not None:
                break
        assert got == whole_search(ids, given, stops, decode), (stops, ids, given, every)
        found += got is not None
    assert 200 < found < 400


CHAT: Any = TOKENIZERS["byte level"]


def ids_of(text: str) -> tuple[int, ...]:
    return tuple(CHAT(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize(
    ("response", "guided", "expected"),
    [
        ("7\n\nQ", 0, "7"),
        ("7 ##<|im_start|><|im_start|>Q", 0, "7 "),
        ("7<|im_end|>", 0, "7"),
        ("é日<|im_start|> <|endoftext|>!", 0, "é日"),
        ("<think>7</think> 8<|endoftext|>", 0, "<think>7</think> 8"),
        ("\n\nQ\n\nQ", 4, "\n\nQ"),
        ("\n\nQ", 3, "\n\nQ"),
        ("\n\nQ", 2, ""),
        ("7\n", 0, "7\n"),
    ],
    ids=str,
)
def test_the_stop_is_not_part_of_the_text(response: str, guided: int, expected: str) -> None:
    decode = text_decoder(CHAT)
    end = CHAT.eos_token_id
    stops = ("\n\nQ", "##Q", "<|im_end|>", " <|endoftext|>!")
    text = ResponseText(Sampling(stop_strings=stops, stop_token_ids=(end,)), decode)
    assert text(ids_of(response), guided) == expected


def test_a_stop_token_that_shows_is_cut_off_only_at_the_end() -> None:
    point = ids_of(".")[0]
    text = ResponseText(Sampling(stop_token_ids=(point,)), text_decoder(CHAT))
    assert text(ids_of("1.5."), 2) == "1.5"
    assert text(ids_of("1."), 2) == "1."


def test_stop_strings_split_by_many_invisible_tokens_are_found() -> None:
    start = CHAT.convert_tokens_to_ids("<|im_start|>")
    ids = (*ids_of("ab" * 30 + "#"), *[start] * 300, *ids_of("Q#"))
    assert StopText(["#Q"], text_decoder(CHAT)).length_at_stop(ids, 360) == 362


def test_any_function_can_decode() -> None:
    search = StopText(["ca", "bd"], lambda ids: "".join(chr(97 + i) for i in ids))
    ids = [0, 1, 2, 0, 1, 3]
    assert search.length_at_stop(ids, 0) == 4
    assert search.length_at_stop(ids, 3) == 4
    assert search.length_at_stop(ids, 4) == 6
    assert search.length_at_stop(ids[:5], 4) is None
    assert search.before_stop(ids) == "abca"
