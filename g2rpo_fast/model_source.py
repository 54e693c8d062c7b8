"""What MODEL names on the command line: a model's directory or file, a hub id, or a run of ours.

runs/a        the model that the finished run left (runs/a/model)
runs/a:40     its checkpoint after step 40
runs/a:best   its checkpoint of the best held-out accuracy
tiny.gguf     a model in GGUF, or package:NAME
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from g2rpo_fast.adapters.place import is_adapter
from g2rpo_fast.checkpoint import checkpoint_name, damage_of
from g2rpo_fast.config import renamed, section_types
from g2rpo_fast.config.choice import settings_of
from g2rpo_fast.model.gguf import gguf_file, is_gguf

BEST = "best"
HUB_TIMEOUT_S = 20.0
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


@dataclass(frozen=True, kw_only=True)
class StoredRun:
    """A run's directory, read only: it may be running."""

    path: Path
    values: Mapping[str, Any]
    """Its configuration, plain; keys of earlier versions by their present names."""

    def section(self, name: str) -> Any:
        """A plain section of it; keys that another version had are left out."""
        cls = section_types()[name]
        known = {key: value for key, value in self.values.get(name, {}).items() if key in settings_of(cls)}
        return cls(**known)

    @property
    def steps(self) -> list[int]:
        """Of the checkpoints that are there."""
        found = sorted((self.path / "checkpoints").glob("step_*"))
        return [int(path.name.removeprefix("step_")) for path in found]

    def state(self, step: int) -> Mapping[str, Any]:
        """The trainer's state in a checkpoint."""
        file = self.path / "checkpoints" / checkpoint_name(step) / "trainer_state.json"
        return json.loads(file.read_text())


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """What `find_model` found."""

    name: str
    """As it was given."""
    path: str
    """What transformers reads, a directory or a hub id; or what `model.gguf.converted` makes one of."""
    run: StoredRun | None = None
    step: int | None = None
    """Of the checkpoint; None = the run's final model, or no run."""


def find_model(name: str, key: str = "MODEL") -> ModelSource:
    """Where the weights are. Looks at names and small files, and at a checkpoint's digests.

    Args:
        key: what the argument is called, for errors.

    Raises:
        ValueError: no such directory, run or step; a run without a model; a damaged checkpoint.
    """
    if is_gguf(name):
        gguf_file(name, key)
        return ModelSource(name=name, path=name)
    if Path(name).is_dir():
        run = read_run(Path(name), key)
        return ModelSource(name=name, path=name) if run is None else _final(name, run, key)
    head, colon, step = name.rpartition(":")
    if colon and Path(head).is_dir():
        run = read_run(Path(head), key)
        if run is None:
            raise ValueError(f"{key}: wanted a run's directory before {colon}{step}, got {head}")
        return _checkpoint(name, run, step, key)
    if colon or not _HUB_ID.fullmatch(name):
        raise ValueError(
            f"{key}: wanted a model's directory, a hub id, or RUN[:STEP] with a run's directory, got "
            f"{name!r}: there is no such directory"
        )
    _check_hub(name, key)
    return ModelSource(name=name, path=name)


def _check_hub(name: str, key: str) -> None:
    """One question to the hub, unless the model is in its cache: transformers would ask for a minute."""
    from huggingface_hub import HfApi, try_to_load_from_cache  # takes a second to import

    if isinstance(try_to_load_from_cache(name, "config.json"), str):
        return
    try:
        HfApi().model_info(name, timeout=HUB_TIMEOUT_S)
    except Exception as error:  # of the network, of the hub, or a name that it does not take
        reason = " ".join(str(error).split("\n\n")[0].split())
        raise ValueError(
            f"{key}: wanted a directory that is there, or a model of the hub, got {name!r}: there is no such "
            f"directory, and the hub says: {reason}"
        ) from error


def read_run(directory: Path, key: str) -> StoredRun | None:
    """The run in a directory; None = it holds none, but perhaps a model."""
    file = directory / "config.json"
    ours = (directory / "checkpoints").is_dir() or (directory / "metrics.jsonl").is_file()
    if not file.is_file() and is_adapter(str(directory)):
        return None
    if not file.is_file():
        what = "a run that was stopped before it began" if ours else "a directory without config.json"
        raise ValueError(f"{key}: wanted a model's or a run's directory, got {directory}: {what}")
    try:
        values = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{key}: wanted JSON in {file}, got what cannot be read: {error}") from error
    if not isinstance(values, dict) or not isinstance(values.get("run"), dict):
        return None
    return StoredRun(path=directory, values=renamed(values))


def _final(name: str, run: StoredRun, key: str) -> ModelSource:
    model = run.path / "model"
    if model.is_dir():
        return ModelSource(name=name, path=str(model), run=run)
    hint = (
        f"name a checkpoint as {name}:STEP or {name}:{BEST}" if run.steps else "it has no checkpoint either"
    )
    raise ValueError(
        f"{key}: wanted a finished run, got {name}, which has no model yet{_listed(run)}; {hint}"
    )


def _checkpoint(name: str, run: StoredRun, word: str, key: str) -> ModelSource:
    if word == BEST:
        step = _best_step(run, key)
    elif word.isdecimal():
        step = int(word)
    else:
        raise ValueError(f"{key}: wanted {run.path}:STEP with a number or {BEST}, got {word!r}")
    path = run.path / "checkpoints" / checkpoint_name(step)
    if not path.is_dir():
        raise ValueError(f"{key}: wanted a step with a checkpoint in {run.path}, got {step}{_listed(run)}")
    if problem := damage_of(path):
        raise ValueError(f"{key}: wanted a whole checkpoint, got {path}, whose {problem}")
    return ModelSource(name=name, path=str(path), run=run, step=step)


def _best_step(run: StoredRun, key: str) -> int:
    best = run.state(run.steps[-1]).get("best_step") if run.steps else None
    if best is None:
        raise ValueError(
            f"{key}: wanted a run with held-out accuracies for :{BEST}, got {run.path}, which has none"
            f"{_listed(run)}"
        )
    return best


def _listed(run: StoredRun) -> str:
    return f" (checkpoints of steps {', '.join(map(str, run.steps))})" if run.steps else " (no checkpoints)"
