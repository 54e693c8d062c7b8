"""What `[data]` names, checked before a run and settled when it begins."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from g2rpo_fast.data import reasoning_gym, sums
from g2rpo_fast.data.config import DataConfig
from g2rpo_fast.data.places import places_of
from g2rpo_fast.data.sources import Source, check_source, fetched
from g2rpo_fast.progress import Progress

TASKS: dict[str, tuple[Callable[..., None], Callable[..., tuple[Path, Path]]]] = {
    reasoning_gym.PREFIX: (reasoning_gym.check_task, reasoning_gym.make_task),
    sums.PREFIX: (sums.check_sums, sums.make_sums),
}
"""How a place begins that makes its own rows -> what checks it, and what makes the two files."""


def check_places(config: DataConfig) -> None:
    """Reads no rows. Raises ValueError, one line: a place that is not there, or a package that it takes."""
    if task := _task(config.path):
        TASKS[task][0](config)
    else:
        for place in _places(config.path):
            check_source(place, config, key="data.path")
    for place in _held_out(config):
        check_source(place, config, key="data.eval_path")


def settle(
    config: DataConfig, directory: Path, *, seed: int, progress: Progress
) -> tuple[tuple[Source, ...], tuple[Source, ...]]:
    """Sources to train on and to evaluate on; of a task that makes its rows, files in the run's directory.

    Raises:
        ValueError: as the task's, and `fetched`.
    """
    train = [(place, "data.path") for place in _places(config.path)]
    held_out = [(place, "data.eval_path") for place in _held_out(config)]
    if task := _task(config.path):
        with progress.phase(f"making the data of {config.path}"):
            made = TASKS[task][1](directory / task.removesuffix(":"), config, seed=seed)
        train, held_out = [(str(made[0]), "data.path")], held_out or [(str(made[1]), "data.eval_path")]
    with progress.phase("loading the data"):
        found = [[fetched(place, config, key=key) for place, key in some] for some in (train, held_out)]
    return tuple(found[0]), tuple(found[1])


def _places(path: Any) -> tuple[Any, ...]:
    places = places_of(path)
    if len(places) > 1 and (tasks := [place for place in places if _task(place)]):
        raise ValueError(f"data.path: wanted a task by itself, got {tasks[0]} beside others")
    return places


def _task(path: Any) -> str | None:
    """How the place begins, where it makes its own rows."""
    return next((prefix for prefix in TASKS if isinstance(path, str) and path.startswith(prefix)), None)


def _held_out(config: DataConfig) -> tuple[Any, ...]:
    if config.eval_path:
        return (config.eval_path,)
    return _places(config.path) if config.eval_split else ()
