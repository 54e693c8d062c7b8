"""JSON lines to problems. What is malformed is refused with file, line and reason, several rows at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from g2rpo_fast.data.config import DataConfig

MAX_REPORTED = 5
CALCULATOR_MARK = re.compile(r"<<[^<>]*>>")


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One row, before templates and tokens."""

    line: int
    """Line of the file, from 1."""
    prompt: str
    answer: str
    trace: str
    """Empty = none."""
    row: Mapping[str, Any]
    """The other columns."""


def read_problems(
    path: str, config: DataConfig, *, key: str, limit: int, trace_required: bool
) -> list[Problem]:
    """The first `limit` rows (0 = all) of a file; blank lines are skipped.

    Raises ValueError naming the configuration `key` (no such file) or up to five malformed rows.
    """
    if not Path(path).is_file():
        raise ValueError(f"{key}: wanted a file of JSON lines, got {path!r}, which is not a file")
    parse = FORMATS[config.format]
    problems: list[Problem] = []
    errors: list[str] = []
    with open(path, "rb") as file:
        for line, text in enumerate(file, start=1):
            if (limit and len(problems) == limit) or len(errors) == MAX_REPORTED:
                break
            if not text.strip():
                continue
            try:
                problems.append(parse(_json_object(text), line, config, trace_required))
            except ValueError as error:
                errors.append(f"  line {line}: {error}")
    if errors:
        stopped = " (stopped there)" if len(errors) == MAX_REPORTED else ""
        raise ValueError(f"{path}: {len(errors)} malformed rows{stopped}\n" + "\n".join(errors))
    if not problems:
        raise ValueError(f"{key}: {path} has no rows")
    return problems


def _json_object(text: bytes) -> dict[str, Any]:
    try:
        row = json.loads(text.decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(row, dict):
        raise ValueError(f"wanted a JSON object, got {type(row).__name__}")
    return row


def _column(row: Mapping[str, Any], name: str) -> Any:
    if name not in row:
        raise ValueError(f"no column {name!r}; the row has {', '.join(map(repr, row)) or 'none'}")
    return row[name]


def _text(row: Mapping[str, Any], name: str) -> str:
    value = _column(row, name)
    if not isinstance(value, str):
        raise ValueError(f"column {name!r}: wanted text, got {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"column {name!r}: half a surrogate pair, which no tokenizer can read") from error
    return value


def _prompt(row: Mapping[str, Any], name: str) -> str:
    prompt = _text(row, name)
    if not prompt.strip():
        raise ValueError(f"column {name!r}: empty prompt")
    return prompt


def _answer(row: Mapping[str, Any], name: str) -> str:
    value = _column(row, name)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"column {name!r}: wanted text or a number, got {type(value).__name__}")
    return str(value)


def _trace(row: Mapping[str, Any], name: str | None, required: bool) -> str:
    """A null trace means that this row cannot be guided."""
    if not name or (not required and name not in row):
        return ""
    if name not in row:
        raise ValueError(f"no column {name!r}; the row has {', '.join(map(repr, row))} (data.trace_column)")
    return "" if row[name] is None else _text(row, name)


def columns_problem(row: dict[str, Any], line: int, config: DataConfig, trace_required: bool) -> Problem:
    """A row whose columns are named in the configuration."""
    used = {config.prompt_column, config.answer_column, config.trace_column}
    return Problem(
        line=line,
        prompt=_prompt(row, config.prompt_column),
        answer=_answer(row, config.answer_column),
        trace=_trace(row, config.trace_column, trace_required),
        row={name: value for name, value in row.items() if name not in used},
    )


def gsm8k_problem(row: dict[str, Any], line: int, config: DataConfig, trace_required: bool) -> Problem:
    """A row of GSM8K (arXiv 2110.14168): the worked solution without its calculator marks is the trace.

    Without chat the trace starts with a space, as it follows "Answer:".
    """
    solution, marker, final = _text(row, "answer").rpartition("####")
    if not marker:
        raise ValueError("column 'answer': no #### before the final answer")
    answer = final.strip().replace(",", "")
    if not answer:
        raise ValueError("column 'answer': nothing after ####")
    trace = CALCULATOR_MARK.sub("", solution).strip()
    return Problem(
        line=line,
        prompt=_prompt(row, "question").strip(),
        answer=answer,
        trace=trace if config.chat or not trace else f" {trace}",
        row={name: value for name, value in row.items() if name not in ("question", "answer")},
    )


FORMATS: dict[str, Callable[[dict[str, Any], int, DataConfig, bool], Problem]] = {
    "columns": columns_problem,
    "gsm8k": gsm8k_problem,
}
