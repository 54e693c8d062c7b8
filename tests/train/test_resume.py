"""Killed at any moment and continued = never interrupted: metrics and weights bit for bit."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from g2rpo_fast.metrics import read_metrics
from runs import HELPERS, TINY, without_times

STEPS = 12


def _start(directory: Path, *more: str) -> subprocess.Popen[bytes]:
    options = [
        f"--{section}.{key.replace('_', '-')}={value if isinstance(value, int) else value[0]}"
        for section, keys in TINY.items()
        for key, value in keys.items()
        if (section, key) != ("run", "steps")
    ]
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "g2rpo_fast.cli",
            "train",
            "embedded",
            f"--run.dir={directory}",
            f"--run.steps={STEPS}",
            "--optim.minibatches=2",
            "--samples.every=1",
            *options,
            *more,
        ],
        stdout=subprocess.DEVNULL,
        cwd=HELPERS,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def _kill_when(process: subprocess.Popen[bytes], moment) -> bool:
    """SIGKILL at the moment; False when the process was done before it."""
    while process.poll() is None:
        if moment():
            process.send_signal(signal.SIGKILL)
            process.wait()
            return True
        time.sleep(0.001)
    return False


def _records(directory: Path) -> int:
    path = directory / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


AHEAD = ("--run.ahead=1", "--objective.importance=sequence_truncate")
ADAPTERS = ("--adapter.kind=dora", "--optim.lr=0.01")
SMALL = (
    "--model.weights=bfloat16",
    "--optim.kind=adamw_8bit",
    "--optim.in-backward",
    "--optim.max-grad-norm=inf",
    "--optim.lr=0.001",
)
"""Less memory: weights that are rounded at random, moments of 8 bits, steps in the backward pass."""
STATE = ("--selection.use=knapsack", "--rounds.use=resample")
"""A prompt store, and rounds after the first; guidance has a memory anyway."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        pytest.param((), marks=pytest.mark.deep, id="plain"),
        pytest.param(AHEAD + STATE, id="ahead, store, rounds"),
        pytest.param(ADAPTERS, marks=pytest.mark.deep, id="adapters"),
        pytest.param(SMALL, marks=pytest.mark.deep, id="less memory"),
    ],
)
def test_run_killed_at_random_moments_equals_the_uninterrupted(more: tuple[str, ...], tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert _start(whole, *more).wait() == 0

    rng = random.Random(0)
    seen = {"writing": False}

    def while_writing() -> bool:
        seen["writing"] = any((broken / "checkpoints").glob("writing_0*"))
        return seen["writing"]

    assert _kill_when(_start(broken, *more), while_writing)
    assert seen["writing"]
    for _ in range(2):
        target = _records(broken) + rng.randint(1, 3)
        deadline = [0.0]

        def a_little_later(target: int = target, deadline: list[float] = deadline) -> bool:
            if not deadline[0] and _records(broken) >= target:
                deadline[0] = time.monotonic() + rng.random() * 0.3
            return bool(deadline[0]) and time.monotonic() > deadline[0]

        assert _kill_when(_start(broken, *more), a_little_later)
    assert not (broken / "model").exists()
    assert _start(broken, *more).wait() == 0

    expected = without_times(read_metrics(whole / "metrics.jsonl"))
    assert len(expected) == STEPS + 1
    assert any(r.get("rollout/guidance_tokens") for r in expected)
    assert {r["rollout/staleness"] for r in expected[2:]} == {1.0 if AHEAD[0] in more else 0.0}
    assert without_times(read_metrics(broken / "metrics.jsonl")) == expected
    weights = "adapter_model.safetensors" if more == ADAPTERS else "model.safetensors"
    for name in (
        "samples.jsonl",
        "model/model.safetensors",
        f"checkpoints/step_{STEPS:08d}/{weights}",
    ):
        assert (broken / name).read_bytes() == (whole / name).read_bytes()
