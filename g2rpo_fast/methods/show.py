"""Methods as text: a table of all, a page on one, JSON."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from g2rpo_fast.methods.record import EVIDENCE, STATUS, Method

NO_IDENTIFIER = "-"
WIDEST_PAGE = 100


def table(methods: Mapping[str, Method], *, width: int) -> str:
    """One line a method under each status; summaries are cut so that no line is wider than `width`."""
    key_width = max(map(len, methods), default=0)
    evidence_width = max(map(len, EVIDENCE))
    lines = []
    for status, meaning in STATUS.items():
        group = [method for method in methods.values() if method.status == status]
        lines += ["", _cut(f"{status}: {len(group)} ({meaning})", width)]
        for method in group:
            known = f"  {method.key:{key_width}}  {method.arxiv or NO_IDENTIFIER:10}  "
            lines.append(_cut(f"{known}{method.evidence:{evidence_width}}  {method.summary}", width))
    labels = [f"{label}: {meaning}" for label, meaning in EVIDENCE.items()]
    footer = ["`g2rpo-fast methods NAME` explains one. What a method's equation rests on:", *labels]
    return "\n".join([*lines[1:], "", *(_cut(line, width) for line in footer)])


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else f"{line[: max(width - 3, 0)].rstrip()}..."[:width]


def explain(method: Method, *, width: int) -> str:
    """A page on one method, wrapped to `width` (equations and settings are not)."""
    width = min(width, WIDEST_PAGE)
    identifier = f"arXiv {method.arxiv}" if method.arxiv else method.source
    known_as = f", also {', '.join(method.aliases)}" if method.aliases else ""
    lines = [
        *_paragraph(f"{method.name} ({identifier}){known_as}", width),
        *_paragraph(method.summary, width),
        "",
        *_paragraph(f"evidence: {method.evidence} ({EVIDENCE[method.evidence]})", width),
    ]
    if method.arxiv and method.source:
        lines += _paragraph(f"source: {method.source}", width)
    lines += _paragraph(f"status: {method.status} ({STATUS[method.status]})", width)
    if method.why_not:
        lines += ["", *_paragraph(method.why_not, width)]
    if method.equation:
        lines += ["", "equation", textwrap.indent(method.equation, "  ")]
    for title, items in (
        ("differs from GRPO", method.differs),
        ("constants", (method.default,) if method.default else ()),
        ("cost", (method.cost,)),
        ("watch", (method.watch,) if method.watch else ()),
        ("needs", method.needs or ("nothing more",)),
        ("refuses", method.refuses or ("nothing",)),
        ("not to be confused with", method.namesakes),
    ):
        lines += _section(title, items, width)
    if method.settings:
        lines += ["", "settings", textwrap.indent(settings_toml(method), "  ")]
    if method.runnable:
        lines += ["", f"run it: {command_of(method)}"]
    return "\n".join(lines)


def settings_toml(method: Method) -> str:
    """The tables of its file."""
    return "\n".join(_toml(method.settings))


def command_of(method: Method) -> str:
    """What runs it. Without settings of its own `--method` would train something else."""
    if method.settings:
        return f"g2rpo-fast train --method {method.key}"
    return "g2rpo-fast train, with the options named above"


def _section(title: str, items: Iterable[str], width: int) -> list[str]:
    listed = [line for item in items for line in _paragraph(item, width, bullet="  - ")]
    return ["", title, *listed] if listed else []


def _paragraph(text: str, width: int, *, bullet: str = "") -> list[str]:
    return textwrap.wrap(
        text,
        max(width, len(bullet) + 1),
        initial_indent=bullet,
        subsequent_indent=" " * len(bullet),
        break_on_hyphens=False,
    )


def as_json(methods: Iterable[Method]) -> str:
    """A JSON array with one object a method, its metadata and `settings`."""
    return json.dumps([_strict(dataclasses.asdict(method)) for method in methods], indent=1)


def _strict(value: Any) -> Any:
    """JSON has no infinity: TOML's word for it stands for it."""
    if isinstance(value, Mapping):
        return {key: _strict(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _toml(table: Mapping[str, Any], path: Sequence[str] = ()) -> Iterator[str]:
    """Lines of TOML: the values of a table, then its tables by their full names."""
    values = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
    if path and (values or not table):
        yield f"[{'.'.join(map(_key, path))}]"
    yield from (f"{_key(key)} = {_value(value)}" for key, value in values.items())
    for key, inner in table.items():
        if isinstance(inner, Mapping):
            yield from _toml(inner, (*path, key))


def _key(key: str) -> str:
    return key if re.fullmatch(r"[\w-]+", key, re.ASCII) else json.dumps(key)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{_key(key)} = {_value(inner)}' for key, inner in value.items())} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, (str, bool)):
        return json.dumps(value, ensure_ascii=False)
    return str(value)
