"""Problems to texts: by a template, or by the tokenizer's chat template."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from g2rpo_fast.data.config import DataConfig
from g2rpo_fast.data.messages import Asked, Conversation, with_asked
from g2rpo_fast.data.rows import read_problems
from g2rpo_fast.data.sources import NamedRows, Source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GSM8K_TEMPLATE = "Question: {prompt}\nAnswer:"
LOOKED_AT = 32
"""Rows of which it is seen whether they are rendered already."""


def with_chat_settled(
    path: Source | Sequence[Source], config: DataConfig, tokenizer: PreTrainedTokenizerBase
) -> DataConfig:
    """`config` with `chat` true or false, as `chat_settled` finds it from the first problems of a source."""
    sources = [path] if isinstance(path, str | NamedRows) else path
    first = (problem for source in sources for problem in _first_problems(source, config))
    return chat_settled(first, config, tokenizer)


def chat_settled(
    problems: Iterable[Asked], config: DataConfig, tokenizer: PreTrainedTokenizerBase
) -> DataConfig:
    """`config` with `chat` true or false. Where it is none: whether the tokenizer has a chat template, and
    either the problems are conversations, or no other template is given, and they have none of the chat
    template's special tokens in them (they would be rendered already). They are not read where it is settled
    without them."""
    if config.chat is not None:
        return config
    if tokenizer.chat_template is None:
        return replace(config, chat=False)
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    rendered = False
    for problem in problems:
        if not isinstance(problem, str):
            return replace(config, chat=True)
        rendered |= any(token in problem for token in special)
    return replace(config, chat=config.template is None and not rendered)


def _first_problems(path: Source, config: DataConfig) -> Iterator[Asked]:
    problems = read_problems(path, config, key="data.path", limit=LOOKED_AT, trace_required=False)
    yield from (problem.prompt for problem in problems)


def check_template(config: DataConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises ValueError: `data.template_kwargs` that nothing reads."""
    if config.template_kwargs and not config.chat:
        raise ValueError(
            "data.template_kwargs: wanted none without a chat template (data.chat = false), got "
            f"{config.template_kwargs}"
        )
    for name in config.template_kwargs:
        if not re.search(rf"\b{re.escape(name)}\b", tokenizer.get_chat_template()):
            raise ValueError(
                f"data.template_kwargs: wanted a name that the chat template reads, got {name!r}, which is "
                "not in it"
            )


def render(problem: Asked, config: DataConfig, tokenizer: PreTrainedTokenizerBase) -> str:
    """The whole text of a prompt."""
    template = config.template
    if template is None:
        template = GSM8K_TEMPLATE if config.format == "gsm8k" and not config.chat else "{prompt}"
    asked = with_asked(problem, lambda text: template.replace("{prompt}", text))
    if config.chat:
        return _rendered(asked, config, tokenizer)
    if isinstance(asked, str):
        return asked
    raise ValueError("data.chat: wanted true, and a tokenizer with a chat template, for messages, got false")


def _rendered(asked: Asked, config: DataConfig, tokenizer: PreTrainedTokenizerBase) -> str:
    if tokenizer.chat_template is None:
        raise ValueError("data.chat: wanted a tokenizer with a chat template, got one without")
    messages: Conversation = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
    if config.system_prompt is not None and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": config.system_prompt}, *messages]
    try:
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, **config.template_kwargs
        )
    except (TemplateError, TypeError, ValueError) as error:
        roles = " and a ".join(message["role"] for message in messages)
        key = "data.chat" if config.system_prompt is None else "data.system_prompt"
        raise ValueError(
            f"{key}: wanted a chat template that takes a {roles} message, got one that says: {error}"
        ) from error
    assert isinstance(text, str)
    return text
