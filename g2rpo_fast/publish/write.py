"""A run's weights as a directory that plain transformers loads, whole or not at all."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from g2rpo_fast.adapters.place import BASE_KEPT, CONFIG, WEIGHTS, is_adapter
from g2rpo_fast.adapters.stored import read_causal_lm
from g2rpo_fast.checkpoint import checkpoint_name
from g2rpo_fast.files import new_directory
from g2rpo_fast.model.config import ModelConfig
from g2rpo_fast.model.export import export_dtype, export_model
from g2rpo_fast.model.read import reading
from g2rpo_fast.model.vocabulary import load_tokenizer
from g2rpo_fast.model_source import ModelSource, StoredRun
from g2rpo_fast.publish.card import model_card


def read_weights(path: str, dtype: str) -> tuple[PreTrainedModel, torch.dtype]:
    """The model on the CPU as it is stored, and the dtype to write.

    Args:
        dtype: its name, or auto: that of most of the stored weights.

    Raises:
        ValueError: a model that cannot be read, or weights too large for the dtype.
    """
    with reading(path, "a causal language model that transformers can read"):
        model = read_causal_lm(path, "auto")
    wanted = export_dtype(path, ModelConfig()) if dtype == "auto" else getattr(torch, dtype)
    largest = torch.finfo(wanted).max
    for name, weight in model.named_parameters():
        most = float(weight.detach().abs().max()) if weight.numel() else 0.0
        if not most <= largest:
            raise ValueError(
                f"--dtype: wanted one that holds every weight ({name} reaches {most:g}), got {dtype}, which "
                f"ends at {largest:g}"
            )
    return model, wanted


def adapters_of(source: ModelSource, run: StoredRun) -> ModelSource:
    """The checkpoint with the adapters of what was asked for; of the final model, the last one.

    Raises:
        ValueError: the run has none.
    """
    step = source.step if source.step is not None else max(run.steps, default=None)
    path = None if step is None else run.path / "checkpoints" / checkpoint_name(step)
    if path is None or not is_adapter(str(path)):
        raise ValueError(f"--adapters: wanted a run that trained adapters, got {source.name}")
    return replace(source, path=str(path), step=step)


def write_adapters(source: ModelSource, run: StoredRun, directory: Path) -> None:
    """The adapters in PEFT's format, the tokenizer and a model card, as `write` does."""
    tokenizer = load_tokenizer(source.path)
    card = model_card(run, source.step, directory.name, None)
    with new_directory(directory, directory.with_name(f".{directory.name}.writing")) as temporary:
        for name in (CONFIG, WEIGHTS, BASE_KEPT):
            shutil.copy(Path(source.path) / name, temporary / name)
        tokenizer.save_pretrained(temporary)
        (temporary / "README.md").write_text(card, encoding="utf-8")


def write(
    source: ModelSource,
    run: StoredRun,
    model: PreTrainedModel,
    directory: Path,
    *,
    dtype: torch.dtype,
    max_shard_size: str,
) -> None:
    """Everything beside `directory`, then renamed. Raises WriteError."""
    tokenizer = load_tokenizer(source.path)
    card = model_card(run, source.step, directory.name, dtype)
    with new_directory(directory, directory.with_name(f".{directory.name}.writing")) as temporary:
        export_model(temporary, model, tokenizer, dtype, max_shard_size=max_shard_size)
        (temporary / "README.md").write_text(card, encoding="utf-8")
