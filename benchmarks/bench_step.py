"""Whole step and update on a CPU, one thread: against TRL's GRPOTrainer and the padded form."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import pytest

import sides

PROMPTS = (64, 256, 1024)
needs_trl = pytest.mark.skipif(
    importlib.util.find_spec("trl") is None, reason="TRL is not installed: pip install g2rpo-fast[bench]"
)


def test_update_against_the_padded_form(benchmark_mode: bool, record: Callable[[str, dict], None]) -> None:
    """Forward, backward and optimiser on the same rollouts: prefix tree, or prompts repeated."""
    lengths, steps, rounds = (PROMPTS, 4, 3) if benchmark_mode else ((16,), 1, 1)
    cases = [
        sides.compare("tree_update", "padded_update", {"prompt": p, "steps": steps}, rounds) for p in lengths
    ]
    assert all(case["tree_update"]["measured_steps"] == steps * rounds for case in cases)
    record("update_vs_padded_cpu", {"cases": cases})


@needs_trl
@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda prompt: f"p{prompt}")
def test_step_against_trl(benchmark_mode: bool, record: Callable[[str, dict], None], prompt: int) -> None:
    """4 prompts x 16 rollouts of 64 tokens: sampling, rewards, update."""
    length, steps, rounds = (prompt, 3, 3) if benchmark_mode else (prompt // 16, 1, 1)
    case = sides.compare("ours_step", "trl_step", {"prompt": length, "steps": steps}, rounds)
    assert case["trl_step"]["measured_steps"] == steps * rounds
    record(f"step_vs_trl_cpu_p{prompt}", {"cases": [case]})


@needs_trl
def test_embedded_task_against_trl(benchmark_mode: bool, record: Callable[[str, dict], None]) -> None:
    """The embedded task, unguided: 16 prompts of 10 tokens x 12 rollouts, where sharing gains little."""
    steps, rounds, warm_start = (10, 3, 140) if benchmark_mode else (1, 1, 1)
    arguments = {"steps": steps, "warm_start_steps": warm_start}
    case = sides.compare("ours_embedded", "trl_embedded", arguments, rounds)
    assert case["ours_embedded"]["measured_steps"] == steps * rounds
    record("embedded_task_vs_trl_cpu", case)
