"""What a run begins from: its model and its data, made, converted or loaded first where they must be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from g2rpo_fast.config import Config
from g2rpo_fast.data.prompts import read_texts
from g2rpo_fast.data.settled import settle
from g2rpo_fast.data.sources import Source
from g2rpo_fast.embedded import UNTRAINED, prepare, prepare_untrained
from g2rpo_fast.model.gguf import converted, gguf_file, is_gguf
from g2rpo_fast.progress import Progress


@dataclass(frozen=True, kw_only=True)
class Origins:
    """Where a run's model and data are."""

    model_dir: str
    """What transformers reads: a directory or a hub id."""
    made_from: str
    """What the run's fingerprint is taken of: the same, or the file that was converted to it."""
    train: tuple[Source, ...]
    held_out: tuple[Source, ...]
    """Empty = no evaluation."""


def find_origins(config: Config, directory: Path, show: Callable[[str], None], progress: Progress) -> Origins:
    """Finds, or makes in the run's directory.

    Raises:
        ValueError: data that cannot be made or loaded, a GGUF file that cannot be converted.
    """
    model = config.model.path
    if model is None or config.data.path is None:
        return _embedded(config, directory, show, progress)
    train, held_out = settle(config.data, directory, seed=config.run.seed, progress=progress)
    made_from = model_dir = model
    if model == UNTRAINED:
        texts = read_texts(train, config.data, trace_required=config.guidance.enabled)
        with progress.phase("making the untrained model"):
            made_from = model_dir = str(prepare_untrained(directory / UNTRAINED, texts, seed=config.run.seed))
    elif is_gguf(model):
        with progress.phase(f"converting {model}, if this is its first time here"):
            made_from, model_dir = str(gguf_file(model)), converted(model)
    return Origins(model_dir=model_dir, made_from=made_from, train=train, held_out=held_out)


def _embedded(config: Config, directory: Path, show: Callable[[str], None], progress: Progress) -> Origins:
    with progress.phase("warm start", config.embedded.warm_start_steps, "steps") as phase:
        made = prepare(
            directory / "embedded", config.embedded, seed=config.run.seed, report=show, ticks=phase
        )
    model_dir = str(made.model_dir)
    return Origins(
        model_dir=model_dir,
        made_from=model_dir,
        train=(str(made.train_path),),
        held_out=(str(made.eval_path),),
    )
