"""`benchmarks/results/*.json` as tables of text: one row for each case or side, one column for each figure;
what they share stands above."""

from __future__ import annotations

import json
import textwrap
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
    machine = f"{record['machine'].get('gpu', record['machine']['cpu'])}, torch {record['versions']['torch']}"
    figures = record["figures"]
    cases = [case for value in figures.values() if isinstance(value, list) for case in value]
    rows = [dict(_flat(case)) for case in cases if isinstance(case, Mapping)]
    common = [f"{name} = {value}" for name, value in _flat(figures)] if rows else []
    return "\n".join(
        [
            f"{record['name']}   {machine}, commit {record['commit']}",
            f"  {record['command']}",
            *textwrap.wrap(", ".join(common), 110, initial_indent="  ", subsequent_indent="  "),
            *(f"  {line}" for line in _table(rows or [dict(_flat(figures))])),
        ]
    )


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
