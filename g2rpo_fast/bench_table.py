"""`benchmarks/results/*.json` as tables of text: one row for each case, one column for each figure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Row = dict[str, str]


def render_results(directory: Path) -> str:
    """All records of a directory, each with what measured it.

    Raises:
        ValueError: the directory holds no JSON records.
    """
    files = sorted(directory.glob("*.json"))
    if not files:
        raise ValueError(f"--results: wanted a directory with benchmark records (*.json), got {directory}")
    return "\n\n".join(_render(json.loads(file.read_text())) for file in files)


def _render(record: Mapping[str, Any]) -> str:
    machine = f"{record['machine']['cpu']}, torch {record['versions']['torch']}"
    return "\n".join(
        [
            f"{record['name']}   {machine}, commit {record['commit']}",
            f"  {record['command']}",
            *(f"  {line}" for line in _table(list(_rows(record["figures"])))),
        ]
    )


def _rows(figures: Mapping[str, Any]) -> Iterator[Row]:
    """The lists of cases in a record, one row a case; a record without a list is one row."""
    lists = [value for value in figures.values() if isinstance(value, list)]
    for case in [case for cases in lists for case in cases if isinstance(case, Mapping)] or [figures]:
        yield dict(_flat(case))


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else key)
    elif isinstance(value, float):
        yield name, f"{value:.4g}"
    elif not isinstance(value, list):
        yield name, str(value)


def _table(rows: list[Row]) -> list[str]:
    """Columns that are alike in every row once on top, the others aligned."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    same = [n for n in names if len({row.get(n) for row in rows}) == 1] if len(rows) > 1 else []
    shown = [n for n in names if n not in same]
    widths = {n: max(len(n), *(len(row.get(n, "")) for row in rows)) for n in shown}
    lines = [", ".join(f"{n} = {rows[0].get(n)}" for n in same)] if same else []
    lines.append("  ".join(n.rjust(widths[n]) for n in shown))
    lines += ["  ".join(row.get(n, "").rjust(widths[n]) for n in shown) for row in rows]
    return lines
