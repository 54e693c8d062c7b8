"""A run's records outside of its own `metrics.jsonl`: in TensorBoard, Weights & Biases, Trackio, MLflow.

Each is a module here that knows one library, imported when a run asks for it (`log.to`); none is needed.
What one of them raises never ends a run: it is told in a line, and the run goes on without it.
"""

from __future__ import annotations

import hashlib
import importlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from g2rpo_fast.bounds import check_fields

LoggerName = Literal["tensorboard", "wandb", "trackio", "mlflow"]
LOGGERS: tuple[LoggerName, ...] = get_args(LoggerName)
"""Each is the name of its module here and of its library."""


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """Where records go besides `metrics.jsonl`."""

    to: tuple[LoggerName, ...] = ()
    """tensorboard, wandb, trackio, mlflow; each by its own library, which must be installed."""
    project: str = "g2rpo-fast"
    """Under which these services keep the run (MLflow: its experiment)."""
    name: str | None = None
    """Of the run there; none = that of its directory."""

    def __post_init__(self) -> None:
        check_fields(self, "log")
        object.__setattr__(self, "to", tuple(dict.fromkeys(self.to)))
        for name in self.to:
            if name not in LOGGERS:
                raise ValueError(f"log.to: wanted some of {', '.join(LOGGERS)}, got {name!r}")


@dataclass(frozen=True, kw_only=True)
class LoggedRun:
    """What a logger is told of a run when it begins or goes on."""

    project: str
    name: str
    directory: Path
    """A library that writes files writes them under it."""
    settings: Mapping[str, Any]
    """The configuration, as JSON has it."""
    last_step: int
    """Of the records that are there; -1 = the run begins. Records of later steps will be made again."""

    @property
    def id(self) -> str:
        """The same whenever the run goes on, and of no other directory."""
        place = hashlib.sha256(str(self.directory.resolve()).encode()).hexdigest()
        return f"{re.sub('[^A-Za-z0-9_-]', '-', self.name)}-{place[:8]}"

    @property
    def flat(self) -> dict[str, Any]:
        """The settings by dotted names."""
        return dict(_flat(self.settings))


class Logger(Protocol):
    """A run's records in one service."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Finite numbers of a step, by name."""
        ...

    def close(self, *, finished: bool) -> None:
        """All written; `finished` = the run came to its end."""
        ...


class LoggerError(RuntimeError):
    """What a logger's library raised, in a line that names it."""


class Loggers:
    """All loggers of a run."""

    def __init__(self, opened: Mapping[str, Logger], show: Callable[[str], None]) -> None:
        self._open, self._show = dict(opened), show

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Nothing where there are no values, as of a run without evaluation before its first step."""
        for name, logger in list(self._open.items()) if values else ():
            self._try(name, lambda logger=logger: logger.write(step, values))

    def close(self, *, finished: bool) -> None:
        for name, logger in list(self._open.items()):
            self._try(name, lambda logger=logger: logger.close(finished=finished))
        self._open.clear()

    def _try(self, name: str, call: Callable[[], None]) -> None:
        try:
            called(name, call)
        except LoggerError as error:
            del self._open[name]
            self._show(f"log.to: {error}; the run goes on without it")


def check_installed(names: Sequence[str]) -> None:
    """ValueError for a library that is not there, before anything is spent."""
    for name in names:
        if find_spec(name) is None:
            raise ValueError(f"log.to: wanted an installed package {name}, got none; pip install {name}")


def open_loggers(names: Sequence[str], run: LoggedRun, show: Callable[[str], None]) -> Loggers:
    """Raises ValueError, one line, where a library refuses to begin."""
    opened: dict[str, Logger] = {}
    try:
        for name in names:
            module = importlib.import_module(f"{__name__}.{name}")
            opened[name] = called(name, lambda module=module: module.open_logger(run))
    except LoggerError as error:
        Loggers(opened, show).close(finished=False)
        raise ValueError(f"log.to: {error}") from error
    return Loggers(opened, show)


def called(name: str, call: Callable[[], Any]) -> Any:
    """What it returns. Raises LoggerError for whatever it raises."""
    try:
        return call()
    except Exception as error:  # a service's library may raise anything
        said = str(error).strip().splitlines()
        raise LoggerError(f"{name}: {type(error).__name__}: {said[0] if said else ''}") from error


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
