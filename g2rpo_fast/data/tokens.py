"""Texts to token ids: prompts by themselves, and each trace as what follows its prompt.

A prompt's ids are what the tokenizer makes of the prompt alone, since unguided rollouts are sampled from it.
A trace's ids, put after them, decode to the prompt's text and then the trace's, with nothing in between:
tokenizers that put a space before every text (Metaspace, add_prefix_space) would else begin it with one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = tuple[int, ...]

ANCHORS = ("\n", ".", ")", "a", "0")
"""Texts to put before a trace so that it does not begin the text; one of them merges with no part of it."""


TAIL = 8
"""Tokens of the prompt that are decoded before a trace to see what is between them."""


def encode(
    prompts: Sequence[str], traces: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, chat: bool
) -> list[tuple[Ids, Ids | None]]:
    """Ids of each prompt, and of its trace: () where that is empty, None where no ids read on from it.

    Prompts have at most one beginning-of-sequence token (BOS) in front. A chat template writes its own
    special tokens; a raw prompt gets those that the tokenizer puts in front, unless it has them already (it
    was rendered beforehand, or `data.template` writes them).

    The trace is the first of these that decodes after the prompt to exactly its text:
    1. what prompt + trace, as one text, has after the prompt's own ids;
    2. where a token spans the boundary: the trace alone, as it comes;
    3. the trace after one of `ANCHORS`, so that nothing is put before it.
    A text that the tokenizer itself changes (Unicode normal forms, lower case, unknown characters) has none;
    then the first that decodes to what prompt + trace as one text decodes to.

    Raises:
        ValueError: the tokenizer puts an end-of-sequence token after a raw prompt.
    """
    heads = _encode(prompts, tokenizer)
    wholes = _encode([prompt + trace for prompt, trace in zip(prompts, traces, strict=True)], tokenizer)
    starts = heads
    if not chat and tokenizer.num_special_tokens_to_add():
        full = _encode(prompts, tokenizer, add_special_tokens=True)
        _refuse_end(prompts, full, tokenizer)
        starts = [_front_once(row, head, tokenizer) for row, head in zip(full, heads, strict=True)]
    return [
        (_one_bos(start, tokenizer), _continuation(head, trace, whole, tokenizer) if trace else ())
        for start, head, trace, whole in zip(starts, heads, traces, wholes, strict=True)
    ]


def _continuation(head: Ids, trace: str, whole: Ids, tokenizer: PreTrainedTokenizerBase) -> Ids | None:
    tail = head[-TAIL:]
    exact = _decode(tail, tokenizer) + trace
    inexact: list[Ids] = []
    for ids in _candidates(head, trace, whole, tokenizer):
        if _decode(tail + ids, tokenizer) == exact:
            return ids
        inexact.append(ids)
    as_whole = _decode(whole, tokenizer)
    return next((ids for ids in inexact if _decode(head + ids, tokenizer) == as_whole), None)


def _candidates(head: Ids, trace: str, whole: Ids, tokenizer: PreTrainedTokenizerBase) -> Iterator[Ids]:
    if whole[: len(head)] == head:
        yield whole[len(head) :]
    yield _encode([trace], tokenizer)[0]
    for anchor in ANCHORS:
        before, both = _encode([anchor, anchor + trace], tokenizer)
        if both[: len(before)] == before:
            yield both[len(before) :]


def _encode(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, add_special_tokens: bool = False
) -> list[Ids]:
    encoded = tokenizer(list(texts), add_special_tokens=add_special_tokens, return_attention_mask=False)
    return [tuple(ids) for ids in encoded["input_ids"]]  # type: ignore[arg-type]


def _decode(ids: Ids, tokenizer: PreTrainedTokenizerBase) -> str:
    text = tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def _refuse_end(texts: Sequence[str], rows: Sequence[Ids], tokenizer: PreTrainedTokenizerBase) -> None:
    eos = tokenizer.eos_token_id
    for text, row in zip(texts, rows, strict=True):
        if eos is not None and row[-1:] == (eos,) and not text.endswith(str(tokenizer.eos_token)):
            raise ValueError(
                "data.chat: wanted true, or another tokenizer (this one ends every raw prompt with its "
                "end-of-sequence token, after which a model generates nothing), got false"
            )


def _front_once(full: Ids, plain: Ids, tokenizer: PreTrainedTokenizerBase) -> Ids:
    """`full` less the tokens that were put before `plain` although it has them.

    A BOS that is also the end of sequence may separate texts inside a prompt: only one at its start counts.
    """
    front = next((n for n in range(len(full) - len(plain) + 1) if full[n : n + len(plain)] == plain), 0)
    present = plain[:1] if tokenizer.bos_token_id == tokenizer.eos_token_id else plain
    return tuple(token for token in full[:front] if token not in present) + full[front:]


def _one_bos(ids: Ids, tokenizer: PreTrainedTokenizerBase) -> Ids:
    """Of several BOS at the start, the last."""
    bos = tokenizer.bos_token_id
    repeated = next((n for n, token in enumerate(ids) if token != bos), len(ids))
    return ids[max(0, repeated - 1) :]
