"""Prompts with a hint in them: what a later round may sample from instead of the plain prompt."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from g2rpo_fast.data.config import DataConfig
from g2rpo_fast.data.messages import with_asked
from g2rpo_fast.data.render import render
from g2rpo_fast.data.rows import Problem
from g2rpo_fast.data.tokens import encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = tuple[int, ...]


def hinted(
    problems: Sequence[Problem], config: DataConfig, tokenizer: PreTrainedTokenizerBase
) -> list[tuple[Ids, ...]]:
    """For each problem, the tokens of its prompt with the hint of each of `data.hint_columns`, in their
    order; () where the row has none."""
    levels = [_level(problems, column, config, tokenizer) for column in config.hint_columns]
    return [tuple(level[place] for level in levels) for place in range(len(problems))]


def _level(
    problems: Sequence[Problem], column: str, config: DataConfig, tokenizer: PreTrainedTokenizerBase
) -> list[Ids]:
    found = [_hint(problem, column, config) for problem in problems]
    if not any(found):
        raise ValueError(f"data.hint_columns: wanted a column with texts in it, got {column!r}")
    around = config.hint_template.split("{hint}")
    texts = [
        render(with_asked(problem.prompt, partial(_around, around, hint)), config, tokenizer)
        for problem, hint in zip(problems, found, strict=True)
    ]
    encoded = encode(texts, [""] * len(texts), tokenizer, chat=bool(config.chat))
    return [ids if hint else () for hint, (ids, _) in zip(found, encoded, strict=True)]


def _around(around: Sequence[str], hint: str, problem: str) -> str:
    return hint.join(part.replace("{prompt}", problem) for part in around)


def _hint(problem: Problem, column: str, config: DataConfig) -> str:
    known = {config.trace_column: problem.trace, config.answer_column: problem.answer}
    value = known.get(column, problem.row.get(column))
    return "" if value is None else str(value)
