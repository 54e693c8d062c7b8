"""Training runs whose rollouts vLLM makes: whole, with an engine killed, with the trainer killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from tiny_engines import gone, model_directories

from g2rpo_fast.metric_names import metric_of
from g2rpo_fast.metrics import read_metrics
from g2rpo_fast.train import train
from g2rpo_fast.types import EngineError
from runs import HELPERS, TINY, tiny_config

VLLM: dict[str, dict[str, Any]] = {
    "rollout": TINY["rollout"] | {"engine": "vllm"},
    "vllm": {"kv_cache_mib": 64},
}


def engines_of(pid: int) -> list[int]:
    """Engine processes of a trainer."""
    children = psutil.Process(pid).children()
    return [child.pid for child in children if "g2rpo_fast.rollout.vllm.host" in child.cmdline()]


def wait_for(condition: Callable[[], bool]) -> None:
    """However busy the machine is."""
    until = time.monotonic() + 900
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)


def test_adapters_reach_the_engine_merged(tmp_path: Path) -> None:
    """Steps large enough that an engine without the adapters of the step before would be far off."""
    adapter = {"adapter": {"kind": "lora", "rank": 4}, "optim": {"lr": 0.05, "schedule": "constant"}}
    result = train(tiny_config(tmp_path / "run", **VLLM, **adapter, run={"steps": 3}))
    records = [r for r in read_metrics(result.metrics_path) if r["step"] > 0]
    assert [r["engine/weight_version"] for r in records] == [1, 2, 3]
    assert all(r["mismatch/max_abs"] < 1e-3 for r in records)
    assert records[1]["update/approx_kl"] > 0.01


def test_weights_in_bfloat16_reach_an_engine_in_float32(tmp_path: Path) -> None:
    """Whose log-probabilities differ from the trainer's by the rounding of products."""
    half = {"model": {"weights": "bfloat16"}, "optim": {"lr": 0.01, "schedule": "constant"}}
    result = train(tiny_config(tmp_path / "run", **VLLM, **half, run={"steps": 3}))
    records = [r for r in read_metrics(result.metrics_path) if r["step"] > 0]
    assert [r["engine/weight_version"] for r in records] == [1, 2, 3]
    assert all(1e-4 < r["mismatch/max_abs"] < 0.3 for r in records)
    assert records[1]["update/approx_kl"] > 0.01


def test_a_run_whose_engine_is_killed_says_so_and_is_continued(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "run", **VLLM)
    lines: list[str] = []
    killed: list[int] = []

    def show(line: str) -> None:
        lines.append(line)
        if line.lstrip().startswith("3/4"):
            killed.extend(engines_of(os.getpid()))
            os.kill(killed[0], signal.SIGKILL)

    with pytest.raises(EngineError, match=r"died in generation after step 3 .*SIGKILL"):
        train(config, show=show)
    assert len(killed) == 1
    assert engines_of(os.getpid()) == []
    said = [line for line in lines if line.startswith("weight sync: layerwise, 1.6 MB a sync; not plan: ")]
    assert len(said) == 1
    assert said[0] in (tmp_path / "run" / "vllm.log").read_text().splitlines()

    result = train(config)
    assert engines_of(os.getpid()) == []
    records = [r for r in read_metrics(result.metrics_path) if r["step"] > 0]
    assert [r["step"] for r in records] == [1, 2, 3, 4]
    for record in records:
        assert record["engine/weight_version"] == record["step"]
        assert record["engine/tokens_per_s"] > 0
        assert record["engine/sync_s"] > 0
        assert record["engine/sync_bytes"] > 1e6
        assert record["engine/restarts"] == 0
        assert {name for name in record if metric_of(name) is None} == set()
        # One set of weights samples and learns: the first update of a step is on-policy.
        assert abs(record["update/token_ratio"]) > 0
    assert result.model_dir.is_dir()


@pytest.mark.parametrize("when", ["starting", "training"])
def test_nothing_is_left_of_a_killed_run(tmp_path: Path, when: str) -> None:
    options = [
        f"--{section}.{key.replace('_', '-')}={value if isinstance(value, int) else value[0]}"
        for section, keys in TINY.items()
        for key, value in keys.items()
        if (section, key) != ("run", "steps")
    ]
    command = [
        *(sys.executable, "-m", "g2rpo_fast.cli", "train", "embedded", f"--run.dir={tmp_path / 'run'}"),
        *("--run.steps=1000", "--rollout.engine=vllm", "--vllm.kv-cache-mib=64", *options),
    ]
    before = model_directories()
    with (tmp_path / "output").open("wb") as output:
        trainer = subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            cwd=HELPERS,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
    try:
        metrics = tmp_path / "run" / "metrics.jsonl"
        wait_for(lambda: bool(engines_of(trainer.pid)))
        if when == "training":
            wait_for(lambda: metrics.exists() and len(read_metrics(metrics)) > 2)
        (engine,) = engines_of(trainer.pid)
        assert not gone(engine)
    finally:
        trainer.kill()
        trainer.wait()
    wait_for(lambda: gone(engine))
    assert model_directories() == before
