"""The text of token ids that rewards read and stop strings are looked for in: one definition for all engines.

Structure shows as nothing: pad, begin and end of a sequence and the tokenizer's other named special tokens,
and the markers that its chat template puts around turns. Content shows, special token or not: `<think>`,
`<answer>`, `<tool_call>`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Decode = Callable[[Iterable[int]], str]
"""Token ids to text. Tokens that follow change the text before them only where that is U+FFFD: the bytes of a
character that is not finished."""

UNFINISHED = "\ufffd"
"""What bytes that are no whole character (yet) decode to."""


@dataclass(frozen=True, kw_only=True)
class TextDecoder:
    """A `Decode` that leaves some tokens out."""

    tokenizer: PreTrainedTokenizerBase
    hidden: Mapping[int, str]
    """Id and name of the tokens that show as nothing."""
    num_ids: int
    """Ids from here on are rows of the model alone (a padded vocabulary), which show as nothing too."""

    def __call__(self, ids: Iterable[int]) -> str:
        """The text, its spaces as the tokens have them."""
        shown = [i for i in ids if i < self.num_ids and i not in self.hidden]
        text = self.tokenizer.decode(shown, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    def showing(self, text: str) -> TextDecoder:
        """One that shows those of the hidden tokens, too, whose names are in `text`; this one if none is."""
        hidden = {i: name for i, name in self.hidden.items() if name not in text}
        return self if hidden == self.hidden else replace(self, hidden=hidden)


def token_texts(ids: Sequence[int], decode: Decode) -> list[str]:
    """The text that each token adds to those before it; of a character of several tokens, the last adds it.

    Only the tokens since the last whole character but one are decoded for each: a tokenizer may write a token
    otherwise at the start of a text.
    """
    texts: list[str] = []
    first = whole = 0
    for end in range(1, len(ids) + 1):
        before, text = decode(ids[first:whole]), decode(ids[first:end])
        if text.endswith(UNFINISHED) and end < len(ids):
            texts.append("")
            continue
        texts.append(text[len(before) :])
        first, whole = whole, end
    return texts


def text_decoder(tokenizer: PreTrainedTokenizerBase) -> TextDecoder:
    """The text that rewards read of a tokenizer's ids."""
    special = {str(t): i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    special |= dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    named = {name for name in tokenizer.special_tokens_map.values() if isinstance(name, str)}
    structure = named | turn_markers(tokenizer, special)
    hidden = {i: name for name, i in special.items() if name in structure}
    num_ids = max(tokenizer.get_vocab().values(), default=-1) + 1
    return TextDecoder(tokenizer=tokenizer, hidden=hidden, num_ids=num_ids)


def turn_markers(tokenizer: PreTrainedTokenizerBase, special: Collection[str]) -> set[str]:
    """Those of the special tokens that the chat template puts around turns; without a template, none.

    A pair such as `<think>` and `</think>` is content, wherever the template puts it.
    """
    ends = {name for name in special if "/" in name and name.replace("/", "", 1) in special}
    content = ends | {name.replace("/", "", 1) for name in ends}
    talk = _conversation(tokenizer)
    return {name for name in special if name in talk and name not in content}


def _conversation(tokenizer: PreTrainedTokenizerBase) -> str:
    """What the chat template makes of a short conversation; nothing where it cannot (a run without
    `data.chat` does not need it)."""
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        return ""
    user, assistant = ({"role": role, "content": "x"} for role in ("user", "assistant"))
    try:
        text = tokenizer.apply_chat_template(
            [user, assistant, user], tokenize=False, add_generation_prompt=True
        )
    except (TemplateError, TypeError, ValueError):
        return ""
    assert isinstance(text, str)
    return text
