"""Rows to problems. What is malformed is refused with file, line and reason, several rows at a time, or
left out and counted (`data.on_bad_row`)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from g2rpo_fast.data.config import DataConfig
from g2rpo_fast.data.json_lines import BadRow, Unit
from g2rpo_fast.data.messages import Asked, conversation_of
from g2rpo_fast.data.sources import Source, rows_of

MAX_REPORTED = 5
CALCULATOR_MARK = re.compile(r"<<[^<>]*>>")


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One row, before templates and tokens."""

    line: int
    """Line of the file, or number of the row, from 1."""
    prompt: Asked
    answer: str
    """A number of the file stands as it was written, without an exponent."""
    trace: str
    """Empty = none."""
    row: Mapping[str, Any]
    """All columns."""
    unit: Unit = "line"


def read_problems(
    path: Source, config: DataConfig, *, key: str, limit: int, trace_required: bool
) -> list[Problem]:
    """The first `limit` rows (0 = all) of a file that can be used; blank lines are skipped.

    Raises ValueError naming the configuration `key` (no such file, no row that can be used) or, unless
    `on_bad_row` skips them, up to five malformed rows.
    """
    return read_rows(path, config, key=key, limit=limit, trace_required=trace_required)[0]


def read_rows(
    path: Source, config: DataConfig, *, key: str, limit: int, trace_required: bool
) -> tuple[list[Problem], list[BadRow]]:
    """As `read_problems`, and the malformed rows before the last of them, which were skipped."""
    parse = FORMATS[config.format]
    problems: list[Problem] = []
    bad: list[BadRow] = []
    unit, rows = rows_of(path, key=key, as_written=config.answer_column)
    for line, row in rows:
        if limit and len(problems) == limit:
            break
        try:
            if isinstance(row, str):
                raise ValueError(row)
            problems.append(replace(parse(row, line, config, trace_required), unit=unit))
        except ValueError as error:
            bad.append(BadRow(line=line, reason=str(error), unit=unit))
            if config.on_bad_row == "refuse" and len(bad) == MAX_REPORTED:
                break
    _refuse(path, config, bad, what="malformed rows")
    if not problems:
        raise ValueError(f"{key}: {path} has no rows" + (f" that can be used{listed(bad)}" if bad else ""))
    return problems, bad


def sift(
    path: Source,
    config: DataConfig,
    problems: Sequence[Problem],
    reason: Callable[[Problem], str | None],
    *,
    what: str,
) -> tuple[list[Problem], list[BadRow]]:
    """Problems without a `reason` against them, and those with one, which are refused unless skipped.

    Raises ValueError for up to five of `what`, or where none is left.
    """
    kept: list[Problem] = []
    bad: list[BadRow] = []
    for problem in problems:
        found = reason(problem)
        if found is None:
            kept.append(problem)
        else:
            bad.append(BadRow(line=problem.line, reason=found, unit=problem.unit))
        if config.on_bad_row == "refuse" and len(bad) == MAX_REPORTED:
            break
    _refuse(path, config, bad, what=what)
    if not kept:
        raise ValueError(f"{path}: no rows are left without the {what}{listed(bad)}")
    return kept, bad


def listed(bad: Sequence[BadRow]) -> str:
    """The first five, a line each."""
    return "".join(f"\n  {row.unit} {row.line}: {row.reason}" for row in bad[:MAX_REPORTED])


def _refuse(path: Source, config: DataConfig, bad: Sequence[BadRow], *, what: str) -> None:
    if bad and config.on_bad_row == "refuse":
        stopped = " (stopped there)" if len(bad) == MAX_REPORTED else ""
        hint = '\n  data.on_bad_row = "skip" leaves such rows out'
        raise ValueError(f"{path}: {len(bad)} {what}{stopped}{listed(bad)}{hint}")


def _column(row: Mapping[str, Any], name: str) -> Any:
    if name not in row:
        raise ValueError(f"no column {name!r}; the row has {', '.join(map(repr, row)) or 'none'}")
    return row[name]


def _text(row: Mapping[str, Any], name: str) -> str:
    value = _column(row, name)
    if not isinstance(value, str):
        raise ValueError(f"column {name!r}: wanted text, got {type(value).__name__}")
    return _readable(value, name)


def _readable(value: str, name: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"column {name!r}: half a surrogate pair, which no tokenizer can read") from error
    return value


def _asked(row: Mapping[str, Any], name: str) -> Asked:
    value = _column(row, name)
    if not isinstance(value, list | tuple):
        return _prompt(row, name)
    conversation = conversation_of(value, name)
    for message in conversation:
        _readable("".join(message.values()), name)
    return conversation


def _prompt(row: Mapping[str, Any], name: str) -> str:
    prompt = _text(row, name)
    if not prompt.strip():
        raise ValueError(f"column {name!r}: empty prompt")
    return prompt


def _answer(row: Mapping[str, Any], name: str) -> str:
    value = _column(row, name)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"column {name!r}: wanted text or a number, got {type(value).__name__}")
    if not str(value).strip():
        raise ValueError(f"column {name!r}: empty answer")
    return _readable(str(value), name)


def _trace(row: Mapping[str, Any], name: str | None, required: bool) -> str:
    """A null trace means that this row cannot be guided."""
    if not name or (not required and name not in row):
        return ""
    if name not in row:
        raise ValueError(f"no column {name!r}; the row has {', '.join(map(repr, row))} (data.trace_column)")
    return "" if row[name] is None else _text(row, name)


def columns_problem(row: dict[str, Any], line: int, config: DataConfig, trace_required: bool) -> Problem:
    """A row whose columns are named in the configuration."""
    return Problem(
        line=line,
        prompt=_asked(row, config.prompt_column),
        answer=_answer(row, config.answer_column),
        trace=_trace(row, config.trace_column, trace_required),
        row=row,
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
        row=row,
    )


FORMATS: dict[str, Callable[[dict[str, Any], int, DataConfig, bool], Problem]] = {
    "columns": columns_problem,
    "gsm8k": gsm8k_problem,
}
