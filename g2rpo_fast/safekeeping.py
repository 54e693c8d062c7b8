"""Saving a run: when it is due, and when something stops it.

Whatever stops a run between two optimiser steps of an update leaves weights that belong to no state: then
the newest checkpoint is what is left. At every other moment the state is saved as it is, and the exception
carries a note that says where.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import torch

from g2rpo_fast.assemble import Parts
from g2rpo_fast.checkpoint import latest_checkpoint, prune_checkpoints, save_checkpoint
from g2rpo_fast.files import WriteError
from g2rpo_fast.model.export import write_small_files
from g2rpo_fast.own import PieceError
from g2rpo_fast.rewards import RewardError
from g2rpo_fast.run_directory import continuing
from g2rpo_fast.types import EngineError
from g2rpo_fast.usage import FAULT

STOPS = (RewardError, PieceError, EngineError, FloatingPointError, WriteError, torch.OutOfMemoryError)
"""Errors that a run may meet without a fault of the program."""


def save(parts: Parts) -> None:
    """A checkpoint of the last state. Raises WriteError, or FloatingPointError for weights that are not."""
    with parts.interrupts.finish_first("this checkpoint"):
        path = _write(parts)
    parts.callbacks.saved(parts.last.state.step, path)


def _write(parts: Parts) -> Path:
    last, learner = parts.last, parts.learner
    last.saved_s = time.monotonic()
    if not all_finite(learner.model):
        raise FloatingPointError(f"step {last.state.step}: weights are no longer finite")
    directory = parts.directory / "checkpoints"
    with parts.progress.phase("saving a checkpoint"):
        path = save_checkpoint(
            directory,
            last.state.step,
            learner.model,
            learner.optimizer,
            last.state.to_dict(),
            {**last.state.store.to_arrays(), **({} if last.sampled is None else last.sampled.to_arrays())},
            random=last.random,
            made_by=learner.optim.made_by(learner.compute.weights),
            add_files=partial(write_small_files, model=learner.model, tokenizer=parts.tokenizer),
        )
    prune_checkpoints(directory, keep=parts.config.checkpoint.keep, best_step=last.state.best_step)
    return path


def all_finite(model: torch.nn.Module) -> bool:
    """By a sum of each weight, which allocates nothing where memory may have run out."""
    return all(math.isfinite(weight.detach().sum(dtype=torch.float64)) for weight in model.parameters())


@contextmanager
def saved_when_stopped(parts: Parts) -> Iterator[None]:
    """Around the loop: saves on any exception, which gets a note that says where."""
    try:
        yield
    except BaseException as error:
        error.add_note(_kept(parts, error))
        if not isinstance(error, (*STOPS, KeyboardInterrupt)):
            error.add_note(FAULT)
        raise


def _kept(parts: Parts, error: BaseException) -> str:
    """Saves what can be saved; what there is to continue from."""
    if parts.interrupts.at_once:
        return _left(parts, "ended at once, without saving")
    if parts.last.half_updated:
        return _left(parts, "stopped in the middle of an update, whose weights are not saved")
    checkpoints = parts.directory / "checkpoints"
    if isinstance(error, WriteError) and checkpoints in error.path.parents:
        return _left(parts, "the state is not saved")
    hold = nullcontext() if parts.interrupts.asked else parts.interrupts.finish_first("saving the state")
    try:
        with hold:
            path = _write(parts)
    except (WriteError, FloatingPointError, torch.OutOfMemoryError) as failed:
        return _left(parts, f"the state is not saved ({failed})")
    return f"the state after step {parts.last.state.step} is saved in {path}; {_how(parts)}"


def _left(parts: Parts, what: str) -> str:
    newest = latest_checkpoint(parts.directory / "checkpoints")
    if newest is None:
        return f"{what}, and there is no checkpoint yet"
    return f"{what}; the newest checkpoint is {newest}; {_how(parts)}"


def _how(parts: Parts) -> str:
    return f"to continue from it: {continuing(parts.directory)}"
