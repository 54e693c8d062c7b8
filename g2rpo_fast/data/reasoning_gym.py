"""Tasks of the package reasoning-gym as data: `data.path = "reasoning_gym:chain_sum"`.

Settings of the task's generator may follow, as in a web address: `reasoning_gym:chain_sum?max_terms=3`, and
`size`, the rows to train on. Each row says how it is made again, which is how the reward `reasoning_gym`
knows what its scorer needs.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from g2rpo_fast.data.config import DataConfig
from g2rpo_fast.data.made_rows import HELD_OUT, name_and_settings, take_size, write_split

PREFIX = "reasoning_gym:"
TRIES = 20
"""Rows drawn for each that is wanted, before a task counts as too small."""
Row = dict[str, Any]


def check_task(config: DataConfig) -> None:
    """Before the package is loaded. Raises ValueError: it is not installed, or the settings do not fit."""
    if config.format != "columns":
        raise ValueError(f"data.format: wanted columns with {config.path}, got {config.format!r}")
    if find_spec("reasoning_gym") is None:
        raise ValueError(
            f"data.path: wanted a file, or the package reasoning-gym for {config.path} (pip install "
            '"g2rpo-fast[reasoning-gym]"), got neither'
        )


def make_task(directory: Path, config: DataConfig, *, seed: int) -> tuple[Path, Path]:
    """Files of JSON lines in the directory, to train on and held out (`data.eval_rows`, else 256 rows); no
    question is in both, or twice. The same seed makes the same files.

    Raises:
        ValueError: the package is not installed, it has no such task or setting, or too few questions.
    """
    check_task(config)
    assert config.path is not None
    name, settings = name_and_settings(config.path.removeprefix(PREFIX))
    rows, held_out = take_size(settings), config.eval_rows or HELD_OUT
    made = _distinct(_entries(name, settings, seed, TRIES * (rows + held_out)))
    found = [_row(entry, config) for entry, _ in zip(made, range(rows + held_out))]
    if len(found) < rows + held_out:
        raise ValueError(
            f"data.path: wanted {rows} questions and {held_out} held out, got {len(found)} different ones of "
            f"{name}: ask for fewer (?size=..., data.eval_rows) or larger ones"
        )
    return write_split(directory, found, held_out=held_out)


def _entries(name: str, settings: Row, seed: int, size: int) -> Iterator[Row]:
    gym = importlib.import_module("reasoning_gym")
    made = {"task": name, "settings": {**settings, "seed": seed, "size": size}}
    try:
        dataset = gym.create_dataset(name, **made["settings"])
    except (ValueError, TypeError, AssertionError) as error:
        raise ValueError(
            f"data.path: wanted a task of reasoning-gym, and its settings, got {error}"
        ) from error
    for index in range(size):
        yield {**dataset[index], "made": {**made, "index": index}}


def _distinct(entries: Iterator[Row]) -> Iterator[Row]:
    seen: set[str] = set()
    for entry in entries:
        if entry["question"] not in seen:
            seen.add(entry["question"])
            yield entry


def _row(entry: Row, config: DataConfig) -> Row:
    """An answer may be none where many are right; it is for people, the scorer has the entry."""
    trace = {} if config.trace_column is None else {config.trace_column: None}
    answer = entry["answer"] or "(any that is right)"
    columns = {config.prompt_column: entry["question"], config.answer_column: answer}
    return {**columns, **trace, "reasoning_gym": entry["made"]}
