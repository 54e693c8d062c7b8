"""A new run that goes on from a checkpoint of another, with other settings."""

from __future__ import annotations

import shutil
from pathlib import Path

from g2rpo_fast.checkpoint import checkpoint_name, latest_checkpoint
from g2rpo_fast.files import new_directory

KEPT = ("metrics.jsonl", "samples.jsonl", "guidance_profile.json", "embedded")
"""What the new run has of the other one besides the checkpoint. Later records are dropped when it begins."""


def checkpoint_of(source: str) -> Path:
    """The checkpoint that RUN or RUN:STEP names.

    Raises:
        ValueError: no such run or checkpoint; those that are there are named.
    """
    directory, colon, step = source.rpartition(":")
    if not colon or not step.isdigit():
        directory, step = source, ""
    folder = Path(directory) / "checkpoints"
    if not (Path(directory) / "config.json").exists():
        raise ValueError(f"run.fork: wanted a run's directory, or RUN:STEP, got {source}")
    found = folder / checkpoint_name(int(step)) if step else latest_checkpoint(folder)
    if found is None or not found.exists():
        there = [str(int(path.name.removeprefix("step_"))) for path in sorted(folder.glob("step_*"))]
        raise ValueError(f"run.fork: wanted a step from {', '.join(there) or 'none'}, got {source}")
    return found


def fork(checkpoint: Path, directory: Path) -> None:
    """Copies a run as it was at a checkpoint, over what a killed copy left.

    Raises:
        ValueError: what is copied cannot be read, such as a checkpoint that its run has removed meanwhile.
    """
    source = checkpoint.parents[1]
    shutil.rmtree(directory / "checkpoints", ignore_errors=True)
    for name in KEPT:
        path = source / name
        if path.is_dir():
            shutil.copytree(path, directory / name, dirs_exist_ok=True)
        elif path.exists():
            shutil.copy(path, directory / name)
    target = directory / "checkpoints" / checkpoint.name
    with new_directory(target, target.with_name(f"writing_{checkpoint.name}")) as temporary:
        try:
            shutil.copytree(checkpoint, temporary, dirs_exist_ok=True)
        except OSError as error:
            raise ValueError(f"run.fork: copying {checkpoint} failed: {error}") from error
