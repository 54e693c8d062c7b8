"""A smoke table of the methods that run: the embedded task, one seed, the same rollouts asked for first.

What a method is about is a number of its own, at the beginning and the end of its run. One seed says nothing
of which method is better, and the table does not.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from g2rpo_fast.config import Config, config_from_dict, load_config, plain
from g2rpo_fast.config.read import with_method
from g2rpo_fast.methods import load_methods
from g2rpo_fast.metrics import read_metrics
from g2rpo_fast.train import train

STEPS, SHOWN = 50, 10
"""Steps of a run, and those at either end that a number is the mean of."""
CHANNELS = {
    "sgpo": ["g2rpo_fast.embedded.channels:progress"],
    "p_grpo": ["g2rpo_fast.embedded.channels:faithful"],
    "surrogate_signals": ["format"],
    "crpo": ["format", "g2rpo_fast.embedded.channels:faithful"],
    "ton": ["format"],
    "prs": ["format"],
}
"""Reward channels that methods read beside the task's own."""
SMOKE: dict[str, dict[str, Any]] = {
    "run": {"steps": 2, "prompts_per_step": 4},
    "embedded": {"warm_start_steps": 1, "train_rows": 32, "eval_rows": 8},
    "data": {"eval_rows": 8},
}


def test_every_method_runs(benchmark_mode: bool, record: Callable[[str, dict], None]) -> None:
    keys = [key for key, method in load_methods().items() if method.runnable and method.settings]
    keys, smaller = (keys, {}) if benchmark_mode else (["grpo", "dcpo"], SMOKE)
    base = Path(tempfile.mkdtemp())
    train(configured("grpo", base / "task", {**smaller, "run": {"steps": 0}}), show=lambda line: None)
    cases = [case_of(key, base, smaller) for key in keys]
    assert all(np.isfinite(case["grad_norm"]) for case in cases)
    record("methods_embedded_task", {"steps": STEPS if benchmark_mode else 2, "methods": cases})


def case_of(key: str, base: Path, smaller: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the table. The warm-started model is one for all."""
    directory = base / key
    shutil.copytree(base / "task" / "embedded", directory / "embedded")
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    result = train(configured(key, directory, smaller), show=lambda line: None)
    steps = read_metrics(result.metrics_path)
    seconds, cpu_seconds = time.perf_counter() - began_s, time.process_time() - began_cpu_s
    trained = steps[1:]
    own = load_methods()[key].watch
    return {
        "method": key,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "rows": int(sum(step["rollout/rows"] for step in trained)),
        "sampled_tokens": int(sum(step["rollout/sampled_tokens"] for step in trained)),
        "silent_groups": mean_of(trained, "rollout/zero_signal"),
        "held_out_before": steps[0]["eval/accuracy"],
        "held_out_after": steps[-1]["eval/accuracy"],
        "own": own,
        "own_first": mean_of(trained[:SHOWN], own),
        "own_last": mean_of(trained[-SHOWN:], own),
        "grad_norm": max(step["optim/grad_norm"] for step in trained),
    }


def mean_of(steps: Sequence[Mapping[str, float]], metric: str) -> float | None:
    """Over the steps that have it; None where none does."""
    values = [step[metric] for step in steps if step.get(metric) is not None]
    return round(float(np.nanmean(values)), 4) if values and not np.isnan(values).all() else None


def configured(key: str, directory: Path, smaller: Mapping[str, Any]) -> Config:
    shaping = {"shaping": [{"use": "gate", "channel": "faithful"}]} if key == "p_grpo" else {}
    method = replace(found := load_methods()[key], settings=found.settings | shaping)
    values = with_method(plain(load_config("embedded")), method)[0]
    reward = {"functions": [*values["reward"]["functions"], *CHANNELS.get(key, [])]}
    layers: list[Mapping[str, Any]] = [
        {
            "run": {"steps": STEPS, "threads": 1, "prompts_per_step": 8},
            "evaluate": {"every": STEPS, "profile_prompts": 0},
            "reward": reward,
        },
        smaller,
        {"run": {**smaller.get("run", {}), "dir": str(directory)}},
    ]
    if key == "guide_grpo":
        layers.append({"data": {"hint_columns": ["trace"], "hint_template": "{hint}#{prompt}"}})
    for layer in layers:
        for section, keys in layer.items():
            values[section] |= keys
    return config_from_dict(values)
