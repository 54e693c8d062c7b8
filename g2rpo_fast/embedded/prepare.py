"""Makes the embedded default: tokenizer, data, and a warm-started model. Nothing is downloaded.

directory/model/       tokenizer and model in transformers' format
directory/train.jsonl  columns prompt, trace, answer
directory/eval.jsonl   held out: neither trained on nor seen by the warm start
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from g2rpo_fast.bounds import Ge, Le, check_fields
from g2rpo_fast.embedded.task import ALPHABET, Row, draw_rows
from g2rpo_fast.types import Report

EVAL_LENGTH = 8
TRAIN_LENGTHS = (6, 7, 8, 8, 8, 8)
"""Mostly the slice that is evaluated; on it alone, 7 and 6 erode."""
COMPLETE = "embedded.json"
"""Written last: what the directory was made from."""


@dataclass(frozen=True, kw_only=True)
class EmbeddedConfig:
    """The task and model that come with the program, used when data.path and model.path are not given."""

    train_rows: Annotated[int, Ge(1)] = 2048
    """Prompts to train on: numbers of 6, 7 and, two thirds, 8 digits."""
    eval_rows: Annotated[int, Ge(1)] = 256
    """Held-out prompts: numbers of 8 digits."""
    warm_start_steps: Annotated[int, Ge(0)] = 150
    """Supervised steps that make the starting model. More make rewards less sparse."""
    empty_thoughts: Annotated[float, Ge(0), Le(1)] = 0.0
    """Share of their transcripts whose trace is left out, so that the model may answer without one: thought
    dropout (TON, arXiv 2505.16854; there 0.5)."""

    def __post_init__(self) -> None:
        check_fields(self, "embedded")


@dataclass(frozen=True, kw_only=True)
class EmbeddedPaths:
    """What `prepare` made."""

    model_dir: Path
    """Model and tokenizer."""
    train_path: Path
    eval_path: Path


def prepare(
    directory: Path,
    config: EmbeddedConfig,
    *,
    seed: int,
    report: Callable[[str], None],
    ticks: Report | None = None,
) -> EmbeddedPaths:
    """Makes the files, or finds those that an earlier call with the same config and seed completed.

    The same seed and thread count give the same bytes of data and the same weights on one machine.
    `report` is given lines about it; `ticks` is told of supervised steps done.
    """
    paths = EmbeddedPaths(
        model_dir=directory / "model",
        train_path=directory / "train.jsonl",
        eval_path=directory / "eval.jsonl",
    )
    made_from = json.dumps({**dataclasses.asdict(config), "seed": seed})
    complete = directory / COMPLETE
    if complete.is_file() and complete.read_text() == made_from:
        return paths
    complete.unlink(missing_ok=True)
    directory.mkdir(parents=True, exist_ok=True)

    rng = np.random.default_rng([seed, 0])
    held_out = draw_rows(rng, (EVAL_LENGTH,), config.eval_rows)
    held_out_prompts = {row["prompt"] for row in held_out}
    write_rows(paths.eval_path, held_out)
    write_rows(paths.train_path, draw_rows(rng, TRAIN_LENGTHS, config.train_rows, held_out_prompts))
    make_model(paths.model_dir, config, seed, held_out_prompts, report, ticks)
    complete.write_text(made_from)
    return paths


def write_rows(path: Path, rows: list[Row]) -> None:
    """JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make_model(
    model_dir: Path,
    config: EmbeddedConfig,
    seed: int,
    exclude: set[str],
    report: Callable[[str], None],
    ticks: Report | None,
) -> None:
    """Initialises, warm-starts and saves the model and its tokenizer."""
    from g2rpo_fast.embedded.model import build_model
    from g2rpo_fast.embedded.tokenizer import build_tokenizer
    from g2rpo_fast.embedded.warm_start import warm_start

    tokenizer = build_tokenizer(ALPHABET)
    model = build_model(vocab_size=len(tokenizer), seed=seed)
    report(
        f"embedded task: sort 8 digits step by step; warm-starting a Qwen3 of "
        f"{model.num_parameters() / 1e6:.1f}M parameters ({config.warm_start_steps} supervised steps)"
    )
    start_s = time.perf_counter()
    warm_start(
        model,
        tokenizer,
        num_steps=config.warm_start_steps,
        seed=seed,
        exclude=exclude,
        empty_thoughts=config.empty_thoughts,
        report=report,
        ticks=ticks,
    )
    report(f"warm start took {time.perf_counter() - start_s:.0f} s")
    model.save_pretrained(model_dir)
    tokenizer.save_pretrained(model_dir)
