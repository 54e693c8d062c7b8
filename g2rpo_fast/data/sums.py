"""Sums with worked steps, made by the program: `data.path = "generated:sums"`.

    prompt  What is 47 + 58 + 13?
    trace   47 + 58 = 105
            105 + 13 = 118
    answer  118

A response is meant to be the trace and, on a line of its own, `#### 118`, where the reward `math` finds the
final answer. Settings may follow, as in a web address, `generated:sums?terms=2&examples=2`: how many numbers
(`terms`), from which to which (`low`, `high`), how many rows to train on (`size`), and how many solved sums
stand before each problem (`examples`), as earlier turns of one conversation: a model with a chat template is
shown the form by them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from g2rpo_fast.data.config import DataConfig
from g2rpo_fast.data.made_rows import HELD_OUT, name_and_settings, take_size, write_split

PREFIX = "generated:"
NAME = "sums"
DEFAULTS = {"terms": 3, "low": 10, "high": 99, "examples": 0}
LEAST = {"terms": 2, "low": 0, "high": 1, "examples": 0}
FILLED = 2
"""Of all sums there are, at most one in so many is drawn: drawing again until one is new stays quick."""


def check_sums(config: DataConfig) -> None:
    """Raises ValueError: another task, a setting that does not fit, or more rows than there are sums."""
    _settled(config)


def make_sums(directory: Path, config: DataConfig, *, seed: int) -> tuple[Path, Path]:
    """Files of JSON lines in the directory, to train on and held out (`data.eval_rows`, else 256 rows); no
    sum is in both, or twice. The same seed makes the same files.

    Raises:
        ValueError: as `check_sums`.
    """
    settings, rows, held_out = _settled(config)
    rng = np.random.default_rng(seed)
    drawn: dict[tuple[int, ...], None] = {}
    while len(drawn) < rows + held_out + settings["examples"]:
        drawn[tuple(rng.integers(settings["low"], settings["high"] + 1, settings["terms"]).tolist())] = None
    sums = list(drawn)
    turns = [turn for numbers in sums[: settings["examples"]] for turn in _turns(numbers)]
    made = [_row(numbers, turns, config) for numbers in sums[settings["examples"] :]]
    return write_split(directory, made, held_out=held_out)


def _settled(config: DataConfig) -> tuple[dict[str, int], int, int]:
    """Settings, rows to train on, rows held out."""
    place = str(config.path)
    name, given = name_and_settings(place.removeprefix(PREFIX))
    if name != NAME:
        raise ValueError(f"data.path: wanted {PREFIX}{NAME}, the only task of that kind, got {place}")
    if config.format != "columns":
        raise ValueError(f"data.format: wanted columns with {place}, got {config.format!r}")
    rows, held_out = take_size(given), config.eval_rows or HELD_OUT
    for key, value in given.items():
        if key not in DEFAULTS:
            raise ValueError(f"data.path: wanted settings of {', '.join((*DEFAULTS, 'size'))}, got {key!r}")
        if type(value) is not int or value < LEAST[key]:
            raise ValueError(
                f"data.path: wanted a whole number of at least {LEAST[key]} as {key}, got {value!r}"
            )
    settings = {**DEFAULTS, **given}
    if settings["low"] > settings["high"]:
        raise ValueError(f"data.path: wanted low up to high = {settings['high']}, got {settings['low']}")
    if settings["examples"] and config.chat is False:
        raise ValueError("data.chat: wanted a chat template for examples in data.path, got false")
    there = (settings["high"] - settings["low"] + 1) ** settings["terms"]
    wanted = rows + held_out + settings["examples"]
    if FILLED * wanted > there:
        raise ValueError(
            f"data.path: wanted at most {there // FILLED} of {there} different sums, got {rows} rows, "
            f"{held_out} held out and {settings['examples']} examples: ask for fewer (size, data.eval_rows)"
        )
    return settings, rows, held_out


def _row(numbers: Sequence[int], turns: Sequence[dict[str, str]], config: DataConfig) -> dict[str, Any]:
    prompt = [*turns, {"role": "user", "content": question(numbers)}] if turns else question(numbers)
    trace = {} if config.trace_column is None else {config.trace_column: worked(numbers)}
    return {config.prompt_column: prompt, **trace, config.answer_column: str(sum(numbers))}


def _turns(numbers: Sequence[int]) -> list[dict[str, str]]:
    solved = f"{worked(numbers)}\n#### {sum(numbers)}"
    return [{"role": "user", "content": question(numbers)}, {"role": "assistant", "content": solved}]


def question(numbers: Sequence[int]) -> str:
    """The problem as a text."""
    return f"What is {' + '.join(map(str, numbers))}?"


def worked(numbers: Sequence[int]) -> str:
    """The trace: a line for each number after the first."""
    totals = accumulate(numbers)
    return "\n".join(
        f"{before} + {number} = {before + number}" for before, number in zip(totals, numbers[1:])
    )
