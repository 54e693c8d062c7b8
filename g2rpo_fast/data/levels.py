"""Levels of a curriculum: prompts by the values of a column."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from g2rpo_fast.types import Longs, Prompt

Value = int | float | str


def level_of(row: Mapping[str, Any], column: str) -> Value:
    """What a row's place depends on. Raises ValueError: no number and no text."""
    if column not in row:
        raise ValueError(f"no column {column!r}; the row has {', '.join(map(repr, row))} (data.order_column)")
    value = row[column]
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"column {column!r}: wanted a number or a text to order by, got {value!r:.80}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"column {column!r}: wanted a finite number to order by, got {value}")
    return value


def levels_of(prompts: Sequence[Prompt], column: str) -> Longs:
    """[len(prompts)] from 0. Texts that are all numbers, as those of a CSV, count as numbers.

    Raises:
        ValueError: numbers and texts.
    """
    values = [level_of(prompt.row, column) for prompt in prompts]
    numbers = [_number(value) for value in values]
    if None in numbers and not all(isinstance(value, str) for value in values):
        odd = values[numbers.index(None)]
        raise ValueError(
            f"data.order_column: wanted numbers or texts in {column!r}, got {odd!r} among numbers"
        )
    keys: list[Any] = values if None in numbers else numbers
    rank = {key: place for place, key in enumerate(sorted(set(keys)))}
    return np.asarray([rank[key] for key in keys], np.int64)


def _number(value: Value) -> int | float | None:
    if not isinstance(value, str):
        return value
    for kind in (int, float):
        try:
            found = kind(value)
        except ValueError:
            continue
        return found if math.isfinite(found) else None
    return None
