"""Ten steps by every method that runs: its own number moves, and a run continued inside them is the same."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from g2rpo_fast.config import Config, config_from_dict, plain
from g2rpo_fast.config.read import with_method
from g2rpo_fast.embedded import prepare
from g2rpo_fast.methods import load_method, load_methods
from g2rpo_fast.metrics import read_metrics
from g2rpo_fast.train import train
from runs import needs_of, tiny_config, without_times

pytestmark = [pytest.mark.slow, pytest.mark.deep]

RUNNABLE = [key for key, method in load_methods().items() if method.runnable and method.settings]
Records = list[dict[str, Any]]
PIECES: dict[str, dict[str, Any]] = {
    "p_grpo": {"shaping": [{"use": "gate", "channel": "process"}]},
    "rank_grpo": {
        "units": {"use": "items", "separator": ";", "most": 6},
        "token_credit": {"use": "ranks", "function": "g2rpo_fast.embedded.channels:right_steps", "length": 4},
    },
    "train_long_think_short": {"shaping": [{"use": "length_budget", "first": 24.0, "weight": 2.0}]},
    "air_quality_grpo": {"rounds": []},  # a horizon below the task's length leaves nothing to reward
}
"""What a method's pieces are on this task, where its file leaves it to the task."""


def constant(metric: str, value: float) -> Callable[[Records], bool]:
    return lambda records: {record[metric] for record in records} == {value}


def falls(metric: str) -> Callable[[Records], bool]:
    return lambda records: mean(records[-3:], metric) < mean(records[:3], metric)


def mean(records: Records, metric: str) -> float:
    return sum(record[metric] for record in records) / len(records)


ALSO: dict[str, Callable[[Records], bool]] = {
    "pods": constant("rollout/rows", 24.0),
    "knapsack_rl": constant("rollout/rows", 24.0),
    "v0_allocation": constant("rollout/rows", 24.0),
    "spo_single_stream": constant("rollout/zero_signal", 0.0),
    "train_long_think_short": falls("shaping/length_budget"),
    "lambda_grpo": lambda records: abs(records[-1]["weights/length_power"]) > 0,
    "ngrpo": lambda records: all(record["rollout/zero_signal"] < 1 for record in records),
    "dcpo": lambda records: max(record["credit/entropy"] for record in records) > 0,
    "guide_grpo": lambda records: any(record["rollout/rows"] > 24 for record in records),
    "dapo": lambda records: any(record["rollout/rows"] > 24 for record in records),
}
"""What else the ten steps of a method must show."""


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The embedded task, made once, as a run's own data."""
    directory = tmp_path_factory.mktemp("task")
    made = prepare(directory, tiny_config(directory).embedded, seed=0, report=lambda line: None)
    return {
        "model": {"path": str(made.model_dir)},
        "data": {"path": str(made.train_path), "eval_path": str(made.eval_path)},
    }


def config_of(key: str, directory: Path, task: dict[str, dict[str, Any]]) -> Config:
    sections = {"evaluate": {"every": 0, "profile_prompts": 0}, "checkpoint": {"every": 5, "keep": 9}}
    values, _ = with_method(plain(tiny_config(directory, **sections)), load_method(key))
    passes = {"updates_per_batch": 2}  # ratios are 1 on the first pass
    layers = (task, needs_of(key, "runs:rare"), {"run": {"steps": 10}, "optim": {"lr": 3e-3, **passes}})
    for layer in layers:
        for name, section in layer.items():
            values[name] = {**values[name], **section}
    return config_from_dict(values | PIECES.get(key, {}))


def run(config: Config) -> tuple[Records, dict[str, torch.Tensor]]:
    result = train(config, show=lambda line: None)
    return without_times(read_metrics(result.metrics_path)), load_file(result.model_dir / "model.safetensors")


@pytest.mark.parametrize("key", RUNNABLE)
def test_its_own_number_moves_and_it_continues_bit_for_bit(
    key: str, task: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    records, weights = run(config_of(key, tmp_path, task))
    assert len(records) == 11
    steps = records[1:]
    watch = load_method(key).watch
    own = [step[watch] for step in steps if step.get(watch) is not None]
    assert len(own) > 4  # a step all of whose groups are silent has none of the update's
    assert all(map(math.isfinite, own))
    assert len(set(own)) > 1
    assert ALSO.get(key, lambda _: True)(steps)
    assert all(bool(weight.isfinite().all()) for weight in weights.values())
    shutil.rmtree(tmp_path / "model")
    shutil.rmtree(tmp_path / "checkpoints" / "step_00000010")
    again, after = run(config_of(key, tmp_path, task))
    assert again == records
    assert all(torch.equal(after[name], weights[name]) for name in weights)
