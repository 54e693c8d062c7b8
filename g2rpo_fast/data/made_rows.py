"""What tasks that make their own rows have in common: a place with settings in it, and two files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from g2rpo_fast.files import write_text

ROWS, HELD_OUT = 2048, 256
"""To train on, where the place names no `size`; held out, where `data.eval_rows` is 0."""


def name_and_settings(place: str) -> tuple[str, dict[str, Any]]:
    """Of a place without its prefix, such as `sums?terms=3`, where settings follow as in a web address.

    Raises:
        ValueError: settings that are not written as name=value.
    """
    name, _, query = place.partition("?")
    try:
        pairs = parse_qsl(query, strict_parsing=bool(query))
    except ValueError as error:
        raise ValueError(f"data.path: wanted settings as name=value&name=value, got {query!r}") from error
    return name, {key: _value(text) for key, text in pairs}


def take_size(settings: dict[str, Any]) -> int:
    """Rows to train on; takes `size` out of the settings. Raises ValueError for what is no such number."""
    rows = settings.pop("size", ROWS)
    if type(rows) is not int or rows < 1:
        raise ValueError(f"data.path: wanted a whole number of rows above 0 as size, got {rows!r}")
    return rows


def write_split(directory: Path, rows: Sequence[Mapping[str, Any]], *, held_out: int) -> tuple[Path, Path]:
    """Files of JSON lines in the directory: to train on, and, of the first rows, held out."""
    directory.mkdir(parents=True, exist_ok=True)
    files = directory / "train.jsonl", directory / "eval.jsonl"
    for file, some in zip(files, (rows[held_out:], rows[:held_out])):
        write_text(file, "".join(json.dumps(row) + "\n" for row in some))
    return files


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
