"""Runs as a report reads them: from their directories, while they go on or later."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from g2rpo_fast.methods import Method, load_methods
from g2rpo_fast.step_log import read_log

MOST = 8
"""Runs in a report: as many colours can be told apart."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run directory holds."""

    number: int
    """From 1: its colour."""
    name: str
    directory: Path
    settings: Mapping[str, Any]
    """section.key -> value; a chain of pieces is one."""
    method: Method | None
    """Of the catalogue, where the run names one."""
    records: Sequence[Mapping[str, Any]]
    """Of metrics.jsonl, from step 1 on; `before` is that of step 0."""
    before: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    """Of samples.jsonl."""
    profile: Sequence[Mapping[str, float]]
    """Points of guidance_profile.json: fraction, success, num."""

    @property
    def steps(self) -> int:
        return self.records[-1]["step"] if self.records else 0

    @property
    def total_steps(self) -> int:
        return self.settings["run.steps"]

    @property
    def finished(self) -> bool:
        return self.steps >= self.total_steps and (self.directory / "model").exists()

    @property
    def names(self) -> set[str]:
        """Of all metrics that it has."""
        return set(self.before).union(*self.records) - {"step"}


def read_runs(directories: Sequence[Path]) -> list[Run]:
    """The runs, in this order.

    Raises:
        ValueError: a directory holds no run, or a damaged one; too many, or one twice.
    """
    if not 0 < len(directories) <= MOST:
        raise ValueError(f"report: wanted 1 to {MOST} run directories, got {len(directories)}")
    if len({path.resolve() for path in directories}) < len(directories):
        raise ValueError(f"report: wanted each run once, got {', '.join(map(str, directories))}")
    methods = load_methods()
    names = _short_names(directories)
    return [_read(path, n, names[n - 1], methods) for n, path in enumerate(directories, start=1)]


def _read(directory: Path, number: int, name: str, methods: Mapping[str, Method]) -> Run:
    config = _json(directory / "config.json", directory)
    records = {record["step"]: record for record in read_log(directory / "metrics.jsonl")}
    profile_file = directory / "guidance_profile.json"
    try:
        settings = flat(config)
        settings["run.steps"]
    except (AttributeError, KeyError) as error:
        raise ValueError(f"report: wanted a run's configuration in {directory / 'config.json'}") from error
    return Run(
        number=number,
        name=name,
        directory=directory,
        settings=settings,
        method=methods.get(str(config.get("method"))),
        records=[record for step, record in records.items() if step > 0],
        before=records.get(0, {}),
        rows=list(read_log(directory / "samples.jsonl")),
        profile=_json(profile_file, directory)["points"] if profile_file.exists() else [],
    )


def _json(file: Path, directory: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except OSError as error:
        raise ValueError(
            f"report: wanted a run directory (config.json, metrics.jsonl), got {directory}: {error.strerror}"
        ) from error
    except ValueError as error:
        raise ValueError(f"report: wanted JSON in {file}, got something else: {error}") from error


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """section.key -> value."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        found |= {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {name: value}
    return found


def _short_names(directories: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as many as tell them apart."""
    paths = [path.resolve() for path in directories]
    depth = 1
    while len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    return ["/".join(path.parts[-depth:]) for path in paths]
