"""A file of JSON lines, one object at a time; what cannot be read is a reason with its line."""

from __future__ import annotations

import codecs
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal, NoReturn

from g2rpo_fast.data.opened import opened, unpacked

MAX_DIGITS = 4300
"""Of a whole number: Python's own limit, above which reading takes time with the square of the digits."""


@dataclass(frozen=True, kw_only=True)
class BadRow:
    """A row that cannot be used."""

    line: int
    """Line of the file, from 1."""
    reason: str
    unit: Unit = "line"


Unit = Literal["line", "row"]
"""What is counted in a file: lines, or rows where those have none."""


def read_objects(path: str, *, key: str) -> Iterator[tuple[int, bytes]]:
    """(line, text) of every line that is not blank; a byte order mark before it is no part of the text.

    Raises:
        ValueError: as `opened` and `unpacked`.
    """
    with opened(path, key=key) as file, unpacked(path, key=key):
        for line, text in enumerate(file, start=1):
            text = text.removeprefix(codecs.BOM_UTF8)
            if text.strip():
                yield line, text


def json_object(text: bytes, *, as_written: str | None = None) -> dict[str, Any]:
    """The object of one line.

    Args:
        as_written: a column; a number in it is given as the text of its digits, so that its value is kept
            (`0.00005` as a float would print as 5e-05, and `1e16` as 1e+16).

    Raises:
        ValueError: not UTF-8, not JSON (NaN and infinities are not), too deep, too large a number, no object.
    """
    try:
        decoded = text.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error}") from error
    try:
        row = json.loads(decoded, parse_constant=_no_number, parse_int=_whole, parse_float=_finite)
    except json.JSONDecodeError as error:
        hint = ": an array? Wanted one object a line" if decoded.lstrip().startswith("[") else ""
        raise ValueError(f"not JSON: {error}{hint}") from error
    except RecursionError as error:
        raise ValueError("not JSON that can be read: nested too deep") from error
    if not isinstance(row, dict):
        raise ValueError(f"wanted a JSON object, got {type(row).__name__}")
    if as_written is not None and type(row.get(as_written)) in (int, float):
        row[as_written] = _digits(json.loads(decoded, parse_int=str, parse_float=str)[as_written])
    return row


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"not JSON: {name} is no number there")


def _whole(text: str) -> int:
    if (digits := len(text.lstrip("-"))) > MAX_DIGITS:
        raise ValueError(f"wanted whole numbers of at most {MAX_DIGITS} digits, got one of {digits}")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"wanted numbers that a double holds, got {text[:40]}")
    return value


def _digits(text: str) -> str:
    """A number as it was written, but without an exponent: 5e-05 is 0.00005."""
    mantissa, exponent, _ = text.lower().partition("e")
    if not exponent:
        return text
    if not mantissa.strip("-0."):
        return "0"
    if float(text) == 0:
        raise ValueError(f"wanted numbers that a double holds, got {text[:40]}")
    return f"{Decimal(text):f}"
