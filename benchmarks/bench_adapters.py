"""Training SmolLM2-135M, all of it or adapters: peak memory, time of a step, size of a checkpoint, learning.

Each way is a run in a process of its own, on the same prompts. The real model is read from the directory that
the environment variable G2RPO_BENCH_MODEL names; without it that case is skipped. What is learnt is measured
on the embedded task, which a CPU can train to the end, over seeds that take turns.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench_forecast import MIB, called, real_run

WAYS: dict[str, list[str]] = {
    "all weights": [],
    "lora": ["--adapter.kind", "lora"],
    "dora": ["--adapter.kind", "dora"],
    "lora on 4 bits": ["--adapter.kind", "lora", "--adapter.base", "nf4"],
}
LEARNING = {
    "all weights": [],
    "lora": ["--adapter.kind", "lora", "--adapter.rank", "16", "--optim.lr", "2e-3"],
}
SEEDS = 3
SMOKE = [
    "--run.steps", "1", "--run.threads", "1", "--run.prompts-per-step", "2", "--rollout.group-size", "4",
    "--embedded.warm-start-steps", "2", "--embedded.train-rows", "32", "--embedded.eval-rows", "8",
]  # fmt: skip


def test_real_model(benchmark_mode: bool, record: Callable[[str, dict], None], tmp_path: Path) -> None:
    given = real_run(benchmark_mode, tmp_path)
    record("adapters_real_model_cpu", {name: run_of([*given, *words]) for name, words in WAYS.items()})


def test_learning(benchmark_mode: bool, record: Callable[[str, dict], None]) -> None:
    common = ["--run.threads", "1"] if benchmark_mode else SMOKE
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in LEARNING}
    for seed in range(SEEDS if benchmark_mode else 1):
        for name, words in LEARNING.items():
            found[name].append(run_of([*common, "--run.seed", str(seed), *words]))
    assert all(run["steps"] for runs in found.values() for run in runs)
    record("adapters_learning_cpu", found)


def run_of(words: Sequence[str]) -> dict[str, Any]:
    """A run from its beginning to its end."""
    directory = Path(tempfile.mkdtemp()) / "run"
    done = called(["train", *words, "--run.dir", str(directory)])
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    first, *steps = [json.loads(line) for line in lines]
    newest = max((directory / "checkpoints").glob("step_*"))
    accuracies = [r["eval/accuracy"] for r in (first, *steps) if r.get("eval/accuracy") is not None]
    return {
        "steps": len(steps),
        "peak_mib": done["peak_mib"],
        "rollout_s": statistics.median(step["time/rollout_s"] for step in steps),
        "update_s": statistics.median(step["time/update_s"] for step in steps),
        "checkpoint_mib": sum(file.stat().st_size for file in newest.iterdir()) / MIB,
        "accuracies": accuracies,
        "load_average": os.getloadavg()[0],
    }
