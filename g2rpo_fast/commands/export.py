"""`g2rpo-fast export RUN[:STEP] DIR`: a trained model as a directory that anybody's transformers loads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from g2rpo_fast.commands.common import loading, names_and_options, telling_interrupts
from g2rpo_fast.progress import Progress
from g2rpo_fast.usage import print_to_pipe, refused_in_one_line

if TYPE_CHECKING:
    from g2rpo_fast.model_source import ModelSource, StoredRun


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """How it is written."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the weights; auto = as they are stored: a checkpoint's are float32."""
    adapters: bool = False
    """Of a run that trained adapters, these alone, in PEFT's format; else the whole model, with them merged
    into it."""
    max_shard_size: str = "5GB"
    """Most of a file of weights, such as 500MB."""
    push: str | None = None
    """Repository of the hub to upload it to as well; one that is made for it is private."""


def run(words: Sequence[str]) -> int:
    names, options = names_and_options("export", words, ("RUN[:STEP]", "DIR"))
    with refused_in_one_line():
        asked = tyro.cli(
            ExportOptions,
            args=options,
            prog="g2rpo-fast export RUN[:STEP] DIR",
            description="The final model of a run (RUN) or a checkpoint (RUN:STEP, RUN:best) in the new "
            "directory DIR: weights, configuration, tokenizer, chat template, generation defaults and a "
            "model card.",
        )
    with telling_interrupts():
        _export(names[0], Path(names[1]), asked)
    return 0


def _export(name: str, directory: Path, asked: ExportOptions) -> None:
    from g2rpo_fast.model_source import find_model
    from g2rpo_fast.publish.place import check_directory, check_size

    source = find_model(name, key="RUN")
    if source.run is None:
        raise ValueError(f"RUN: wanted the directory of a run, got {name}, which is none")
    check_directory(directory)
    check_size(asked.max_shard_size)
    loading("g2rpo_fast.publish.write")
    from g2rpo_fast.publish.hub import logged_in, push
    from g2rpo_fast.publish.write import adapters_of, write_adapters

    adapters = adapters_of(source, source.run) if asked.adapters else None
    api = None if asked.push is None else logged_in(asked.push)
    if adapters is None:
        what = _write_whole(source, source.run, directory, asked)
    else:
        write_adapters(adapters, source.run, directory)
        what = f"the adapters of step {adapters.step}"
    size = sum(file.stat().st_size for file in directory.iterdir())
    print_to_pipe(f"{name}: {what}, {size / 1e6:.1f} MB in {directory}")
    if api is not None and asked.push is not None:
        with Progress().phase(f"uploading to {asked.push}"):
            url = push(api, directory, asked.push)
        print_to_pipe(f"uploaded to {url}")


def _write_whole(source: ModelSource, run: StoredRun, directory: Path, asked: ExportOptions) -> str:
    """What was written."""
    from g2rpo_fast.publish.write import read_weights, write

    with Progress().phase(f"reading {source.path}"):
        model, dtype = read_weights(source.path, asked.dtype)
    with Progress().phase(f"writing {directory}"):
        write(source, run, model, directory, dtype=dtype, max_shard_size=asked.max_shard_size)
    return f"{model.num_parameters() / 1e6:.2f}M parameters in {str(dtype).removeprefix('torch.')}"
