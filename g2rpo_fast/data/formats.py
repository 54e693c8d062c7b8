"""Rows of files that are no JSON lines: a JSON array, CSV, Parquet. Each is its number and its columns, or
the reason why it cannot be read."""

from __future__ import annotations

import codecs
import csv
import importlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from decimal import Decimal
from typing import Any

from g2rpo_fast.data.json_lines import Unit, json_object, read_objects
from g2rpo_fast.data.opened import opened, unpacked, unpacked_suffix, wanted

Found = tuple[int, dict[str, Any] | str]
"""Number from 1; columns, or a reason."""
BLANK = codecs.BOM_UTF8 + b" \t\r\n"
Reader = Callable[[str, str, str | None], Iterator[Found]]
"""Of (path, configuration key, column whose numbers are given as they were written)."""


def reader_of(path: str, *, key: str) -> tuple[Reader, Unit]:
    """By the file's name; a `.json` may be an array or lines."""
    suffix = unpacked_suffix(path)
    if suffix == ".json" and _begins_array(path, key):
        return array_rows, "row"
    return READERS.get(suffix, (line_rows, "line"))


def line_rows(path: str, key: str, as_written: str | None) -> Iterator[Found]:
    """JSON lines, numbered by their lines."""
    for line, text in read_objects(path, key=key):
        yield line, _object(text, as_written)


def array_rows(path: str, key: str, as_written: str | None) -> Iterator[Found]:
    """The objects of a JSON array, which is read whole."""
    number, decoder = 0, json.JSONDecoder(parse_int=str, parse_float=str)  # values are read one by one below
    with opened(path, key=key) as file, unpacked(path, key=key):
        try:
            text = file.read().decode("utf-8-sig")
            place = text.index("[") + 1
            while (place := _after_space(text, place)) < len(text) and text[place] != "]":
                _, end = decoder.raw_decode(text, place)
                number += 1
                yield number, _object(text[place:end].encode(), as_written)
                place = _after_space(text, end)
                if text[place : place + 1] not in (",", "]"):
                    raise json.JSONDecodeError("Expecting ',' delimiter", text, place)
                place += text[place] == ","
            if text[place:].strip() != "]":
                raise json.JSONDecodeError("Expecting the end of the array", text, place)
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{key}: {path}, after row {number}: not JSON: {error}") from error


def csv_rows(path: str, key: str, as_written: str | None) -> Iterator[Found]:
    """Every value is the text that stands there, so that none changes; numbered by the line it begins in."""
    del as_written
    with opened(path, key=key) as file, unpacked(path, key=key):
        reader, line = csv.reader(io.TextIOWrapper(file, "utf-8-sig", newline=""), strict=True), 1
        try:
            header = next(reader, [])
            if len(set(header)) < len(header):
                raise ValueError(f"{key}: {path}, line 1: wanted each column once, got {', '.join(header)}")
            line = reader.line_num + 1
            for values in reader:
                if values:
                    yield line, _cells(header, values)
                line = reader.line_num + 1
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{key}: {path}, line {line}: not CSV in UTF-8: {error}") from error


def parquet_rows(path: str, key: str, as_written: str | None) -> Iterator[Found]:
    """A file of Parquet, some rows at a time."""
    wanted("pyarrow", path, key=key)
    arrow, parquet = (importlib.import_module(name) for name in ("pyarrow", "pyarrow.parquet"))
    with opened(path, key=key) as file:
        try:
            batches = parquet.ParquetFile(file).iter_batches(batch_size=1024)
            yield from plain_rows((row for batch in batches for row in batch.to_pylist()), as_written)
        except (arrow.ArrowException, OSError) as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(f"{key}: wanted a file of Parquet, got {path!r} ({reason})") from error


READERS: dict[str, tuple[Reader, Unit]] = {".csv": (csv_rows, "line"), ".parquet": (parquet_rows, "row")}


def plain_rows(rows: Iterable[Any], as_written: str | None) -> Iterator[Found]:
    """Rows that are Python's already."""
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, Mapping):
            yield number, f"wanted a mapping of columns, got {type(row).__name__}"
            continue
        columns = dict(row)
        value = columns.get(as_written) if as_written is not None else None
        if isinstance(value, float | Decimal):
            exact = Decimal(repr(float(value))) if isinstance(value, float) else value
            if not exact.is_finite():
                yield number, f"column {as_written!r}: wanted a finite number, got {value}"
                continue
            columns[as_written] = f"{exact:f}"
        yield number, columns


def _begins_array(path: str, key: str) -> bool:
    with opened(path, key=key) as file, unpacked(path, key=key):
        first = next(filter(None, (line.strip(BLANK) for line in file)), b"")
    return first.startswith(b"[")


def _object(text: bytes, as_written: str | None) -> dict[str, Any] | str:
    try:
        return json_object(text, as_written=as_written)
    except ValueError as error:
        return str(error)


def _after_space(text: str, place: int) -> int:
    while place < len(text) and text[place] in " \t\r\n":
        place += 1
    return place


def _cells(header: list[str], values: list[str]) -> dict[str, Any] | str:
    if len(values) != len(header):
        return f"wanted {len(header)} values, as the header has, got {len(values)}"
    return dict(zip(header, values, strict=True))
