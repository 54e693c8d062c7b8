"""What `[data]` names, checked before a run and settled when it begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from g2rpo_fast.data.config import DataConfig
from g2rpo_fast.data.places import places_of
from g2rpo_fast.data.reasoning_gym import check_task, is_task, make_task
from g2rpo_fast.data.sources import Source, check_source, fetched
from g2rpo_fast.progress import Progress


def check_places(config: DataConfig) -> None:
    """Reads no rows. Raises ValueError, one line: a place that is not there, or a package that it takes."""
    if is_task(config.path):
        check_task(config)
    else:
        for place in _places(config.path):
            check_source(place, config, key="data.path")
    for place in _held_out(config):
        check_source(place, config, key="data.eval_path")


def settle(
    config: DataConfig, directory: Path, *, seed: int, progress: Progress
) -> tuple[tuple[Source, ...], tuple[Source, ...]]:
    """Sources to train on and to evaluate on; of a task of reasoning-gym, files in the run's directory.

    Raises:
        ValueError: as `make_task` and `fetched`.
    """
    train = [(place, "data.path") for place in _places(config.path)]
    held_out = [(place, "data.eval_path") for place in _held_out(config)]
    if is_task(config.path):
        with progress.phase(f"making the data of {config.path}"):
            made = make_task(directory / "reasoning_gym", config, seed=seed)
        train, held_out = [(str(made[0]), "data.path")], held_out or [(str(made[1]), "data.eval_path")]
    with progress.phase("loading the data"):
        found = [[fetched(place, config, key=key) for place, key in some] for some in (train, held_out)]
    return tuple(found[0]), tuple(found[1])


def _places(path: Any) -> tuple[Any, ...]:
    places = places_of(path)
    if len(places) > 1 and (tasks := [place for place in places if is_task(place)]):
        raise ValueError(f"data.path: wanted a task of reasoning-gym by itself, got {tasks[0]} beside others")
    return places


def _held_out(config: DataConfig) -> tuple[Any, ...]:
    if config.eval_path:
        return (config.eval_path,)
    return _places(config.path) if config.eval_split else ()
