"""What keeps an update's memory small: optimisers and weights of fewer bits, and trees that are packed.

`test_real_model` and `test_learning` are runs, in processes of their own and on the same prompts (see
`bench_adapters.py`). `test_growth` is an update of the embedded model on given rollouts with a small
`tree.token_budget`: one quantity grows, the others are held, each point a process of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sides
from bench_adapters import SEEDS, SMOKE, run_of
from bench_forecast import real_run
from g2rpo_fast.tree import plan_trees

HALF = ["--model.weights", "bfloat16"]
EIGHT = ["--optim.kind", "adamw_8bit"]
WITHIN = ["--optim.in-backward", "--optim.max-grad-norm", "inf"]
WAYS: dict[str, list[str]] = {
    "float32, AdamW": [],
    "moments in 8 bits": EIGHT,
    "Muon": ["--optim.kind", "muon"],
    "steps in the backward pass": WITHIN,
    "bfloat16 weights": HALF,
    "bfloat16 weights, moments in 8 bits": HALF + EIGHT,
    "all three": HALF + EIGHT + WITHIN,
    "all three, checkpointing": [*HALF, *EIGHT, *WITHIN, "--model.gradient-checkpointing"],
    "float32, AdamW, checkpointing": ["--model.gradient-checkpointing"],
    "float32, AdamW, 15 of 30 layers checkpointing": [
        "--model.gradient-checkpointing", "--model.checkpointed-layers", "15",
    ],
}  # fmt: skip
LEARNING: dict[str, list[str]] = {
    "float32, AdamW": [],
    "moments in 8 bits": EIGHT,
    "Muon": ["--optim.kind", "muon"],
    "bfloat16 weights, moments in 8 bits, steps in the backward pass": HALF + EIGHT + WITHIN,
}
BUDGET = 2048
"""Positions of a micro-batch while memory's growth is measured."""
GROWTH: dict[str, list[dict[str, int]]] = {
    "prompts": [{"prompts": n} for n in (1, 2, 4, 8, 16, 32)],
    "group": [{"prompts": 2, "group": n} for n in (4, 8, 16, 32, 64, 128)],
    "completion": [{"prompts": 2, "group": 8, "completion": n} for n in (32, 64, 128, 256, 512)],
    "prompt": [{"prompts": 2, "group": 8, "prompt": n} for n in (64, 256, 1024, 1792)],
}
HELD = {"prompt": 128, "prompts": 2, "group": 16, "completion": 48}


def test_real_model(benchmark_mode: bool, record: Callable[[str, dict], None], tmp_path: Any) -> None:
    given = real_run(benchmark_mode, tmp_path)
    record("memory_real_model_cpu", {name: run_of([*given, *words]) for name, words in WAYS.items()})


def test_learning(benchmark_mode: bool, record: Callable[[str, dict], None]) -> None:
    common = ["--run.threads", "1"] if benchmark_mode else SMOKE
    ways = LEARNING if benchmark_mode else {"bfloat16 weights": HALF}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    for seed in range(SEEDS if benchmark_mode else 1):
        for name, words in ways.items():
            found[name].append(run_of([*common, "--run.seed", str(seed), *words]))
        assert all(runs[-1]["steps"] for runs in found.values())
        record("memory_learning_cpu", found)  # so far: each seed takes long


def test_growth(benchmark_mode: bool, record: Callable[[str, dict], None]) -> None:
    for varied, points in GROWTH.items() if benchmark_mode else [("prompts", GROWTH["prompts"][:1])]:
        cases = [grown(HELD | point, steps=2 if benchmark_mode else 0) for point in points]
        assert all(case["peak_above_base_mib"] > 0 for case in cases)
        record(f"memory_growth_{varied}_cpu", {"varied": varied, "token_budget": BUDGET, "cases": cases})


def grown(point: dict[str, int], steps: int) -> dict[str, Any]:
    """Peak memory of an update above what the process had before it."""
    plans = plan_trees(sides.Update(**point).sequences(), token_budget=BUDGET)
    found = sides.run("tree_update", {"steps": steps, "token_budget": BUDGET, **point})
    return {
        **point,
        "positions": sum(len(plan.token_S) for plan in plans),
        "largest_micro_batch": max(len(plan.token_S) for plan in plans),
        "micro_batches": len(plans),
        "peak_above_base_mib": found["peak_mib"] - found["base_mib"],
    }
