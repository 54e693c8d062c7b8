"""The problems that `eval` and `sample` put to a model: a file of JSON lines, or one text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from g2rpo_fast.assemble import reference_checks
from g2rpo_fast.data import DataConfig
from g2rpo_fast.data.prompts import PromptSet, load_prompts, prompts_of
from g2rpo_fast.data.render import chat_settled, with_chat_settled
from g2rpo_fast.data.rows import FORMATS, Problem
from g2rpo_fast.data.sources import Source, rows_of
from g2rpo_fast.rewards.loading import RewardSet
from g2rpo_fast.types import Prompt


def check_file(path: Source, config: DataConfig, *, key: str, answers: bool) -> None:
    """A file that has rows, the first of which has the columns that are read.

    Raises:
        ValueError: in one line, with the key that would mend it.
    """
    unit, rows = rows_of(path, key=key)
    found = next(rows, None)
    if found is None:
        raise ValueError(f"{key}: wanted a file with JSON lines, got {path}, which has no rows")
    line, row = found
    if isinstance(row, str):
        if config.on_bad_row == "skip":
            return
        raise ValueError(f"{key}: {path}, {unit} {line}: {row}")
    wanted = {"data.prompt_column": config.prompt_column}
    if answers:
        wanted["data.answer_column"] = config.answer_column
    if config.format == "gsm8k":
        wanted = {"data.format": "question", "data.format = gsm8k": "answer"}
    for setting, column in wanted.items():
        if column not in row:
            hint = "; its rows look like GSM8K's own: --data.format gsm8k" if _gsm8k(row) else ""
            raise ValueError(
                f"{setting}: wanted a column of {path} ({', '.join(row) or 'none'}), got {column!r}{hint}"
            )


def _gsm8k(row: dict[str, Any]) -> bool:
    return "question" in row and "####" in str(row.get("answer"))


def judged_problems(
    path: Source, config: DataConfig, tokenizer: PreTrainedTokenizerBase, rewards: RewardSet
) -> PromptSet:
    """The file's problems, as training reads those that it holds out."""
    settled = with_chat_settled(path, config, tokenizer)
    checks = reference_checks(rewards)
    return load_prompts(path, settled, tokenizer, split="eval", trace_required=False, checks=checks)


def typed_problems(
    texts: Sequence[str], config: DataConfig, tokenizer: PreTrainedTokenizerBase, *, key: str
) -> list[Prompt]:
    """Problems that were typed, in their order."""
    for text in texts:
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{key}: wanted a text, got {text!r}")
    problems = [
        Problem(line=line, prompt=text, answer="", trace="", row={})
        for line, text in enumerate(texts, start=1)
    ]
    settled = chat_settled(texts, config, tokenizer)
    return list(prompts_of(problems, settled, tokenizer, split="eval")[0].values())


def shown_problems(
    path: Source, config: DataConfig, tokenizer: PreTrainedTokenizerBase, *, key: str
) -> list[Prompt]:
    """The problems of a file, with their traces; they need no answers.

    Raises:
        ValueError: the first row that cannot be read.
    """
    settled = chat_settled((p.prompt for p in _read(path, config, key)), config, tokenizer)
    return list(prompts_of(_read(path, settled, key), settled, tokenizer, split="eval")[0].values())


def _read(path: Source, config: DataConfig, key: str) -> list[Problem]:
    problems = []
    unit, rows = rows_of(path, key=key)
    for line, row in rows:
        try:
            if isinstance(row, str):
                raise ValueError(row)
            if config.format == "columns":
                row[config.answer_column] = "none"  # nobody reads it
            problems.append(FORMATS[config.format](row, line, config, False))
        except ValueError as error:
            raise ValueError(f"{key}: {path}, {unit} {line}: {error}") from error
    return problems
