"""Checkpoints that survive a kill at any moment, a full disk and a damaged file.

A checkpoint is a directory written under a temporary name, flushed to disk and renamed: it is there whole
or not at all, and a manifest of its files tells later damage. It holds the model, the optimizer, every
random-number generator and the trainer's own state (step, data cursor, memories, weight version), and arrays:
what is kept of each prompt, and rollouts that are not trained on yet. Continued from it, a run on a CPU
repeats bit for bit. With the model's config and tokenizer beside the weights, plain transformers loads it.
Of a model with adapters it holds these alone, in PEFT's format, and where their base is.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from safetensors.numpy import load_file
from safetensors.numpy import save_file as save_arrays

from g2rpo_fast.adapters.place import WEIGHTS
from g2rpo_fast.bounds import Ge, Gt, check_fields
from g2rpo_fast.checkpoint.manifest import damage_of, write_manifest
from g2rpo_fast.checkpoint.random_state import random_state, restore_random_state
from g2rpo_fast.files import new_directory, writing

if TYPE_CHECKING:
    import torch

__all__ = [
    "CheckpointConfig",
    "checkpoint_name",
    "damage_of",
    "drop_optimizers",
    "latest_checkpoint",
    "load_arrays",
    "load_checkpoint",
    "prune_checkpoints",
    "random_state",
    "restore_random_state",
    "save_checkpoint",
    "undamaged_checkpoint",
]

FIRST_KIND = "adamw, float32 weights"
"""Of checkpoints that do not say what made their optimiser's state."""
_PREFIX = "step_"
_TEMPORARY = "writing_"
_DAMAGED = "damaged_"


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When to save and what to keep."""

    every: Annotated[int, Ge(1)] = 20
    """Steps between checkpoints; the last step is always saved."""
    every_s: Annotated[float, Gt(0)] | None = None
    """Seconds after which a step saves, too, whatever its number; none = by steps alone."""
    keep: Annotated[int, Ge(1)] = 2
    """Newest checkpoints to keep; the one with the best evaluation is kept as well."""

    keep_moments: bool = True
    """Whether checkpoints keep the optimiser's moments when the run has ended: two thirds of their size,
    wanted only to go on with more steps."""

    def __post_init__(self) -> None:
        check_fields(self, "checkpoint")


def checkpoint_name(step: int) -> str:
    return f"{_PREFIX}{step:08d}"


def save_checkpoint(
    directory: Path,
    step: int,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    trainer_state: dict[str, Any],
    arrays: Mapping[str, np.ndarray] | None = None,
    *,
    random: dict[str, Any] | None = None,
    made_by: str = "",
    add_files: Callable[[Path], None] | None = None,
) -> Path:
    """Writes `directory/step_XXXXXXXX` atomically; one that is there already stays.

    Args:
        trainer_state: must be JSON.
        random: of `random_state`; None = as the generators are now.
        made_by: what kind of optimiser it is, for `load_checkpoint`.
        add_files: writes what else belongs into the directory that it is given.

    Raises:
        WriteError: naming the file; nothing of it is left, and earlier checkpoints are as they were.
    """
    import torch

    final = directory / checkpoint_name(step)
    if final.exists():
        return final
    with new_directory(final, directory / f"{_TEMPORARY}{step:08d}") as temporary:
        if add_files is not None:
            add_files(temporary)
        _save_weights(temporary, final, model)
        with writing(final / "optimizer.pt"):
            state = {"optimizer": optimizer.state_dict(), "rng": random or random_state(), "made_by": made_by}
            torch.save(state, temporary / "optimizer.pt")
        (temporary / "trainer_state.json").write_text(json.dumps(trainer_state, indent=1))
        if arrays:
            save_arrays(dict(arrays), temporary / "arrays.safetensors")
        write_manifest(temporary)
    return final


def _save_weights(temporary: Path, final: Path, model: torch.nn.Module) -> None:
    from safetensors.torch import save_file

    from g2rpo_fast.adapters.merged import has_adapters
    from g2rpo_fast.adapters.stored import save_adapters

    if has_adapters(model):
        with writing(final / WEIGHTS):
            save_adapters(temporary, model)
        return
    with writing(final / "model.safetensors"):
        save_file(_unshared(model), temporary / "model.safetensors", metadata={"format": "pt"})


def _unshared(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The model's tensors, one name for tied weights: the first, which is that of the embedding."""
    tensors: dict[int, tuple[str, torch.Tensor]] = {}
    for name, tensor in model.state_dict().items():
        tensors.setdefault(tensor.data_ptr(), (name, tensor.contiguous()))
    return dict(tensors.values())


def latest_checkpoint(directory: Path) -> Path | None:
    """The newest whole checkpoint, or None. Removes what a killed writer left behind."""
    for leftover in directory.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(leftover)
    found = sorted(directory.glob(f"{_PREFIX}*"))
    return found[-1] if found else None


def undamaged_checkpoint(directory: Path, show: Callable[[str], None]) -> Path | None:
    """The newest checkpoint whose files are as they were written; None = there is no checkpoint.

    A damaged one is named through `show` and set aside as `damaged_step_XXXXXXXX`.

    Raises:
        ValueError: all are damaged.
    """
    newest = latest_checkpoint(directory)
    problems: list[tuple[Path, str]] = []
    for path in sorted(directory.glob(f"{_PREFIX}*"), reverse=True):
        problem = damage_of(path)
        if problem is None:
            for bad, why in problems:
                show(f"warning: checkpoint {bad} is damaged ({why}); {path.name} is used instead")
                shutil.rmtree(bad.with_name(_DAMAGED + bad.name), ignore_errors=True)
                bad.rename(bad.with_name(_DAMAGED + bad.name))
            return path
        problems.append((path, problem))
    if newest is None:
        return None
    raise ValueError(
        f"run.dir: wanted a whole checkpoint in {directory}, got "
        + "; ".join(f"{path.name}, whose {why}" for path, why in problems)
        + ". Give another run.dir to begin anew"
    )


def load_checkpoint(
    path: Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    made_by: str = "",
    show: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Restores model, optimizer and generators in place; returns the trainer state.

    Args:
        made_by: what kind of optimiser this is. Where the stored state is of another (of a fork with other
            settings), this one begins anew, which `show` is told. Not said = they are of one kind.
    """
    import torch
    from safetensors.torch import load_model

    from g2rpo_fast.adapters.merged import has_adapters
    from g2rpo_fast.adapters.stored import load_adapters

    if has_adapters(model):
        load_adapters(path, model)
    else:
        load_model(model, str(path / "model.safetensors"), device=str(next(model.parameters()).device))
    file = path / "optimizer.pt"
    if not file.exists():
        raise ValueError(
            f"run.dir: wanted a checkpoint with the optimiser's state, got {path.name} without "
            "(checkpoint.keep_moments = false): the run has ended"
        )
    state = torch.load(file, weights_only=True)
    stored = state.get("made_by", FIRST_KIND)
    if made_by in ("", stored):
        optimizer.load_state_dict(state["optimizer"])
    else:
        show(f"note: the optimiser begins anew ({made_by}): its state in {path.name} is of {stored}")
    restore_random_state(state["rng"])
    return json.loads((path / "trainer_state.json").read_text())


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """What `save_checkpoint` was given as arrays."""
    file = path / "arrays.safetensors"
    return load_file(file) if file.exists() else {}


def drop_optimizers(directory: Path) -> None:
    """Leaves the weights and the trainer's state of all checkpoints."""
    for path in sorted(directory.glob(f"{_PREFIX}*")):
        file = path / "optimizer.pt"
        if file.exists():
            write_manifest(path, without=(file.name,))
            file.unlink()


def prune_checkpoints(directory: Path, *, keep: int, best_step: int | None) -> None:
    """Removes all but the newest `keep` checkpoints and the best one."""
    found = sorted(directory.glob(f"{_PREFIX}*"))
    for path in found[:-keep]:
        if best_step is None or path.name != checkpoint_name(best_step):
            doomed = path.with_name(_TEMPORARY + path.name)
            os.rename(path, doomed)
            shutil.rmtree(doomed)
