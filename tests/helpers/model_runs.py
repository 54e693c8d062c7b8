"""Tiny runs of untrained models of any type, on the embedded task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from causal_types import tiny_config as tiny_model_config
from g2rpo_fast.config import Config
from g2rpo_fast.embedded import prepare
from g2rpo_fast.metrics import read_metrics
from g2rpo_fast.train import train
from g2rpo_fast.types import TrainResult
from runs import quiet, tiny_config, without_times

Paths = dict[str, dict[str, Any]]


def made_of(model_type: str, directory: Path, **extra: Any) -> Paths:
    """An untrained model of a type with the embedded task's tokenizer, and its data.

    Args:
        extra: fields of its configuration.
    """
    embedded = tiny_config(directory, embedded={"warm_start_steps": 1}).embedded
    made = prepare(directory, embedded, seed=0, report=quiet)
    tokenizer = AutoTokenizer.from_pretrained(made.model_dir)
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 512, "eos_token_id": 1}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_model_config(model_type, **sizes | extra))
    model.save_pretrained(directory / model_type)
    tokenizer.save_pretrained(directory / model_type)
    return {
        "model": {"path": str(directory / model_type)},
        "data": {"path": str(made.train_path), "eval_path": str(made.eval_path)},
    }


def config_of(directory: Path, paths: Paths, steps: int, **sections: dict[str, Any]) -> Config:
    values: dict[str, Any] = {
        "run": {"steps": steps},
        "checkpoint": {"every": 1},
        "evaluate": {"every": 0, "profile_prompts": 0},
        "optim": {"schedule": "constant"},
        "model": paths["model"],
        "data": paths["data"],
    }
    return tiny_config(directory, **values | sections)


def check_that_it_goes_on(
    directory: Path, paths: Paths, whole: TrainResult, **sections: dict[str, Any]
) -> None:
    """After a run was ended at its first step: bit for bit as without an end."""
    train(config_of(directory, paths, 1, **sections), show=quiet)
    broken = train(config_of(directory, paths, 2, **sections), show=quiet)
    records = [without_times(read_metrics(result.metrics_path)) for result in (whole, broken)]
    assert records[0] == records[1]
    weights = [(result.model_dir / "model.safetensors").read_bytes() for result in (whole, broken)]
    before = (Path(paths["model"]["path"]) / "model.safetensors").read_bytes()
    assert weights[0] == weights[1] != before
