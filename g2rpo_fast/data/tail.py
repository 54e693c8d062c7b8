"""What a prompt already says of its response: some chat templates open `<think>` themselves."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from g2rpo_fast.types import opening_tag

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_QUESTION, _REPLY = "x", "\u00a4"
"""Contents of a made-up conversation; no template begins a reply with that sign."""


def chat_tail(
    tokenizer: PreTrainedTokenizerBase, system_prompt: str | None, template_kwargs: Mapping[str, Any]
) -> str:
    """What the chat template puts behind the header of the turn that is asked for.

    The header is what it also puts before a reply that lies in the past. A template that takes no such
    conversation, or writes questions of the past otherwise, is judged by its last tag, as a raw prompt is.
    """
    system = [] if system_prompt is None else [{"role": "system", "content": system_prompt}]
    asked = [*system, {"role": "user", "content": _QUESTION}]
    past = [*asked, {"role": "assistant", "content": _REPLY}, {"role": "user", "content": _QUESTION}]
    rendered = partial(_rendered, tokenizer, **template_kwargs)
    prompt = rendered(asked, add_generation_prompt=True)
    try:
        tail = _behind(prompt, rendered(past))
        added = _behind(prompt, rendered(asked))
    except (TemplateError, TypeError, ValueError):
        return opening_tag(prompt)
    return tail if len(tail) <= len(added) else opening_tag(prompt)


def _behind(text: str, other: str) -> str:
    """What is left of a text behind the beginning that both have."""
    same = takewhile(bool, (a == b for a, b in zip(text, other)))
    return text[sum(same) :]


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], **options: Any) -> str:
    text = tokenizer.apply_chat_template(messages, tokenize=False, **options)
    assert isinstance(text, str)
    return text
