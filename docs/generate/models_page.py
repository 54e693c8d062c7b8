"""Which types of causal language models train here: what tests/helpers/causal_types.py found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from generate.as_markdown import code, prose, table

FOUND = Path(__file__).parent / "model_types.json"
"""The release of transformers, and of each of its types what became of a small model of it."""
SHARED, UNSHARED = "exact", "exact on unshared rows: "


def found() -> dict[str, Any]:
    return json.loads(FOUND.read_text())


def sorts() -> dict[str, dict[str, str]]:
    """Each sort's types, with the reason why they are not of the sort before."""
    outcomes: dict[str, str] = found()["outcomes"]
    made: dict[str, dict[str, str]] = {"shared": {}, "unshared": {}, "refused": {}}
    for name, outcome in outcomes.items():
        if outcome == SHARED:
            made["shared"][name] = ""
        elif outcome.startswith(UNSHARED):
            made["unshared"][name] = _reason(name, outcome.removeprefix(UNSHARED))
        else:
            made["refused"][name] = _reason(name, outcome)
    return made | {"untried": found()["not_tried"]}


def models_page() -> str:
    of = sorts()
    named = {sort: ", ".join(map(code, types)) for sort, types in of.items()}
    parts = [
        f"With transformers {found()['transformers']}, of {sum(map(len, of.values()))} types: "
        f"{len(of['shared'])} share prefix trees, {len(of['unshared'])} train on unshared rows, "
        f"{len(of['refused'])} are refused, and {len(of['untried'])} were not tried.",
        f"### Exact, and share prefix trees\n\n{named['shared']}",
        "### Exact on unshared rows\n\n" + _table("why not on trees", of["unshared"]),
        "### Refused\n\n" + _table("why", of["refused"]),
        "### Not tried\n\n" + _table("no small model of it was made:", of["untried"]),
    ]
    return "\n\n".join(parts)


def _table(head: str, types: dict[str, str]) -> str:
    return table(["model type", head], [[code(name), prose(reason)] for name, reason in types.items()])


def _reason(name: str, line: str) -> str:
    """Without the type at its beginning."""
    return line.partition(": ")[2] or line
