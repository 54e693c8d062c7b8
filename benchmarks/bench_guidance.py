"""What guidance does on the embedded task: held-out accuracy at equal rollouts, with and without it."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

from g2rpo_fast.config import Config, config_from_dict, load_config
from g2rpo_fast.metrics import read_metrics
from g2rpo_fast.train import train

ARMS: dict[str, dict[str, Any]] = {
    "guided": {},
    "unguided": {"guidance": {"enabled": False}},
}


def test_guided_and_unguided_learning(benchmark_mode: bool, record: Callable[[str, dict], None]) -> None:
    """The embedded default, three seeds each. Everything but the guidance section is the same."""
    seeds, smoke = ((0, 1, 2), {}) if benchmark_mode else ((0,), SMOKE)
    cases = []
    for seed in seeds:
        for name, arm in ARMS.items():
            curve = held_out_curve(arm | smoke, seed)
            cases.append({"arm": name, "seed": seed, **{f"step {step}": y for step, y in curve.items()}})
    last = list(cases[0])[-1]
    means = {
        arm: mean(float(case[last]) for case in cases if case["arm"] == arm)  # type: ignore[arg-type]
        for arm in ARMS
    }
    assert all(0 <= value <= 1 for value in means.values())
    record("guidance_embedded_task", {"held_out": cases, f"mean at {last}": means})


SMOKE = {
    "run": {"steps": 1},
    "embedded": {"warm_start_steps": 1, "train_rows": 32, "eval_rows": 8},
    "evaluate": {"profile_prompts": 0},
}


def held_out_curve(sections: dict[str, dict[str, Any]], seed: int) -> dict[int, float]:
    """Greedy accuracy on held-out prompts by step, every 20 steps."""
    directory = Path(tempfile.mkdtemp()) / "run"
    result = train(configured(sections, seed, directory), show=lambda line: None)
    records = read_metrics(result.metrics_path)
    return {r["step"]: r["eval/accuracy"] for r in records if "eval/accuracy" in r}


def configured(sections: dict[str, dict[str, Any]], seed: int, directory: Path) -> Config:
    values = dataclasses.asdict(load_config("embedded"))
    fixed = {
        "run": {"seed": seed, "threads": 1, "dir": str(directory)},
        "evaluate": {"every": 20, "profile_prompts": 0},
        "data": {"eval_rows": 256},
    }
    for layer in (fixed, sections):
        for section, keys in layer.items():
            values[section] |= keys
    return config_from_dict(values)
