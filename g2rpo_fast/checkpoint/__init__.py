"""Checkpoints that survive a kill at any moment.

A checkpoint is a directory written under a temporary name, flushed to disk and renamed: it is there whole
or not at all. It holds the model, the optimizer, every random-number generator and the trainer's own state
(step, data cursor, guidance controller, weight version), and arrays: rollouts that are not trained on yet.
Continued from it, a run on a CPU repeats bit for bit.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_model, save_model

from g2rpo_fast.bounds import check_fields

_PREFIX = "step_"
_TEMPORARY = "writing_"


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When to save and what to keep."""

    every: Annotated[int, Ge(1)] = 20
    """Steps between checkpoints; the last step is always saved."""
    keep: Annotated[int, Ge(1)] = 2
    """Newest checkpoints to keep; the one with the best evaluation is kept as well."""

    def __post_init__(self) -> None:
        check_fields(self, "checkpoint")


def save_checkpoint(
    directory: Path,
    step: int,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    trainer_state: dict[str, Any],
    arrays: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """Writes `directory/step_XXXXXXXX` atomically. `trainer_state` must be JSON."""
    final = directory / f"{_PREFIX}{step:08d}"
    if final.exists():
        return final
    temporary = directory / f"{_TEMPORARY}{step:08d}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_model(model, str(temporary / "model.safetensors"))
    torch.save({"optimizer": optimizer.state_dict(), "rng": _rng_state()}, temporary / "optimizer.pt")
    (temporary / "trainer_state.json").write_text(json.dumps(trainer_state, indent=1))
    if arrays is not None:
        save_file(dict(arrays), temporary / "arrays.safetensors")
    for file in temporary.iterdir():
        _flush(file)
    _flush(temporary)
    os.rename(temporary, final)
    _flush(directory)
    return final


def latest_checkpoint(directory: Path) -> Path | None:
    """The newest whole checkpoint, or None. Removes what a killed writer left behind."""
    for leftover in directory.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(leftover)
    found = sorted(directory.glob(f"{_PREFIX}*"))
    return found[-1] if found else None


def load_checkpoint(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Restores model, optimizer and generators in place; returns the trainer state."""
    load_model(model, str(path / "model.safetensors"), device=str(next(model.parameters()).device))
    state = torch.load(path / "optimizer.pt", weights_only=True)
    optimizer.load_state_dict(state["optimizer"])
    _restore_rng(state["rng"])
    return json.loads((path / "trainer_state.json").read_text())


def load_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """What `save_checkpoint` was given as arrays; None = nothing."""
    file = path / "arrays.safetensors"
    return load_file(file) if file.exists() else None


def prune_checkpoints(directory: Path, *, keep: int, best_step: int | None) -> None:
    """Removes all but the newest `keep` checkpoints and the best one."""
    found = sorted(directory.glob(f"{_PREFIX}*"))
    for path in found[:-keep]:
        if best_step is None or path.name != f"{_PREFIX}{best_step:08d}":
            doomed = path.with_name(_TEMPORARY + path.name)
            os.rename(path, doomed)
            shutil.rmtree(doomed)


def _rng_state() -> dict[str, Any]:
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys).copy()), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _restore_rng(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy(), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
