"""Problems to texts: by a template, or by the tokenizer's chat template."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from g2rpo_fast.data.config import DataConfig
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
    problems: Iterable[str], config: DataConfig, tokenizer: PreTrainedTokenizerBase
) -> DataConfig:
    """`config` with `chat` true or false. Where it is none: whether the tokenizer has a chat template, no
    other template is given, and the problems have none of its special tokens in them (they would be rendered
    already). They are not read where it is settled without them."""
    if config.chat is not None:
        return config
    if tokenizer.chat_template is None or config.template is not None:
        return replace(config, chat=False)
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    rendered = any(token in problem for problem in problems for token in special)
    return replace(config, chat=not rendered)


def _first_problems(path: Source, config: DataConfig) -> Iterator[str]:
    problems = read_problems(path, config, key="data.path", limit=LOOKED_AT, trace_required=False)
    yield from (problem.prompt for problem in problems)


def render(problem: str, config: DataConfig, tokenizer: PreTrainedTokenizerBase) -> str:
    """The whole text of a prompt."""
    template = config.template
    if template is None:
        template = GSM8K_TEMPLATE if config.format == "gsm8k" and not config.chat else "{prompt}"
    content = template.replace("{prompt}", problem)
    if not config.chat:
        return content
    if tokenizer.chat_template is None:
        raise ValueError("data.chat: wanted a tokenizer with a chat template, got one without")
    messages = [{"role": "user", "content": content}]
    if config.system_prompt is not None:
        messages.insert(0, {"role": "system", "content": config.system_prompt})
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except (TemplateError, TypeError, ValueError) as error:
        roles = " and a ".join(message["role"] for message in messages)
        key = "data.chat" if config.system_prompt is None else "data.system_prompt"
        raise ValueError(
            f"{key}: wanted a chat template that takes a {roles} message, got one that says: {error}"
        ) from error
    assert isinstance(text, str)
    return text
