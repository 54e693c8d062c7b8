"""One method, read strictly from its TOML file."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

EVIDENCE = {
    "code": "read in the authors' code",
    "paper": "read in the paper's own text",
    "notes": "from reviews, notes and implementations by others, which agree; not read in the paper",
    "approx": "an approximation: the paper's own formula, or a part of it that matters, was not seen",
}
"""What a method's equation rests on, from firm to loose."""

STATUS = {
    "runs": "as published",
    "core": "the part that carries over runs, not the whole",
    "not yet": "described, not built yet",
    "no": "nothing to run, and why",
}

ARXIV = re.compile(r"\d{4}\.\d{5}")


@dataclass(frozen=True, kw_only=True)
class Method:
    """A published method against GRPO, in plain words and plain text notation."""

    key: str
    """Name of its file, and of `train --method`."""
    name: str
    arxiv: str
    """Identifier of the paper, "" where there is none; `source` then says where it is from."""
    evidence: str
    """A key of EVIDENCE."""
    status: str
    """A key of STATUS."""
    summary: str
    """One line: what it does differently."""
    equation: str
    """Its update as different from GRPO. Empty only where status is "no"."""
    differs: tuple[str, ...]
    """"piece: what is different", piece by piece."""
    needs: tuple[str, ...]
    """Of data or model, beyond a prompt and a reward."""
    cost: str
    refuses: tuple[str, ...]
    """What cannot be combined with it, and why."""
    watch: str = ""
    """The metric that it is about, by its name in metrics.jsonl; of those that run with settings."""
    entry: str = ""
    """The system that it belongs to, which may have several methods; "" for baselines of the field."""
    source: str = ""
    aliases: tuple[str, ...] = ()
    """Other names, of this method alone."""
    ambiguous: tuple[str, ...] = ()
    """Names that it shares with another method here: looking one up lists them all."""
    namesakes: tuple[str, ...] = ()
    """Other papers by the same name, which this is not."""
    default: str = ""
    """The published constants, in prose, and today's options of the trainer where they express it."""
    why_not: str = ""
    """Where status is "no": what it is, and why there is nothing to run or what covers it."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The configuration tables of its file."""

    def __post_init__(self) -> None:
        for name, labels in (("evidence", EVIDENCE), ("status", STATUS)):
            self._check(name, f"one of {', '.join(labels)}", getattr(self, name) in labels)
        for name in ("name", "summary", "cost"):
            self._check(name, "a text", getattr(self, name) != "")
        self._check("summary", "one line", "\n" not in self.summary)
        self._check(
            "arxiv", 'an identifier such as "2402.03300", or "" with a source', self._has_identifier()
        )
        refused = self.status == "no"
        self._check("equation", 'a text unless status = "no"', refused or self.equation != "")
        self._check("differs", 'at least one unless status = "no"', refused or self.differs != ())
        self._check("why_not", 'a text if status = "no", and only then', refused == (self.why_not != ""))

    def _has_identifier(self) -> bool:
        return bool(ARXIV.fullmatch(self.arxiv)) or (self.arxiv == "" and self.source != "")

    def _check(self, name: str, wanted: str, ok: bool) -> None:
        if not ok:
            raise ValueError(f"{self.key}.toml: {name}: wanted {wanted}, got {getattr(self, name)!r}")

    @property
    def runnable(self) -> bool:
        return self.status in ("runs", "core")


METADATA = {f.name: "tuple" in str(f.type) for f in fields(Method) if f.name not in ("key", "settings")}
"""Metadata key -> whether it is a list of texts, not one text."""

MANDATORY = (
    "name", "arxiv", "evidence", "status", "summary", "equation", "differs", "needs", "cost", "refuses",
)  # fmt: skip


UNTOLD: dict[str, Any] = {
    "arxiv": "", "source": "a file of one's own", "evidence": "code", "status": "runs",
    "summary": "a method of one's own", "equation": "not told", "differs": ("not told",),
    "needs": (), "cost": "not told", "refuses": (),
}  # fmt: skip
"""What stands for metadata that a user's own file leaves out."""


def method_from_toml(key: str, text: str) -> Method:
    """The method of the file `key`.toml with this text.

    Raises:
        ValueError: naming the file: not valid TOML, an unknown, missing or mistyped key, a bad label.
    """
    metadata, settings = _parsed(key, text)
    missing = [name for name in MANDATORY if name not in metadata]
    if missing:
        raise ValueError(f"{key}.toml: wanted the keys {', '.join(MANDATORY)}, got no {', '.join(missing)}")
    return Method(key=key, settings=settings, **metadata)


def own_method(key: str, text: str) -> Method:
    """A user's own: tables, and as much metadata as they care to give.

    Raises:
        ValueError: as `method_from_toml`, but for missing metadata; a file without a table.
    """
    metadata, settings = _parsed(key, text)
    if not settings:
        raise ValueError(f"{key}.toml: wanted tables such as terms or credit, got none")
    return Method(key=key, settings=settings, **{"name": key, **UNTOLD, **metadata})


def _parsed(key: str, text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(metadata, tables) of a file."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{key}.toml: not valid TOML: {error}") from error
    settings = {name: value for name, value in values.items() if name not in METADATA and _is_table(value)}
    metadata = {name: value for name, value in values.items() if name not in settings}
    for name, value in metadata.items():
        if name not in METADATA:
            near = difflib.get_close_matches(name, METADATA, n=1)
            hint = f"the nearest is {near[0]}" if near else f"known: {', '.join(METADATA)}"
            raise ValueError(f"{key}.toml: unknown key {name}; {hint}")
        metadata[name] = _texts(key, name, value) if METADATA[name] else _text(key, name, value)
    return metadata, settings


def _is_table(value: object) -> bool:
    """A table, or an array of tables; an empty one is a chain without pieces."""
    if isinstance(value, list):
        return all(isinstance(item, Mapping) for item in value)
    return isinstance(value, Mapping)


def _text(key: str, name: str, value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{key}.toml: {name}: wanted a text, got {value!r}")
    return value.strip()


def _texts(key: str, name: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) and item.strip() for item in value):
        raise ValueError(f"{key}.toml: {name}: wanted a list of texts, got {value!r}")
    return tuple(item.strip() for item in value)
