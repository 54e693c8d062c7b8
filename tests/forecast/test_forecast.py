"""A forecast of a tiny run beside the run itself; and that a run is the same with an estimate and without."""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, Qwen3Config

from g2rpo_fast.assemble import assemble
from g2rpo_fast.forecast import forecast
from g2rpo_fast.forecast.limits import disk_bytes, memory_bytes
from g2rpo_fast.forecast.memory import PROBE, kept_bytes, saved_bytes
from g2rpo_fast.forecast.show import as_text, brief
from g2rpo_fast.learner import Policy
from g2rpo_fast.metrics import read_metrics
from g2rpo_fast.model import ModelConfig
from g2rpo_fast.model.checkpointing import checkpoint_layers
from g2rpo_fast.train import train
from runs import quiet, tiny_config, without_times
from wide_models import wide


@pytest.mark.parametrize("kind", [LlamaConfig, Qwen3Config])
def test_what_a_position_keeps_is_the_same_for_all(kind: type):
    """Counted at 48 and 96 positions, true at 120; recomputing keeps each layer's input, and one layer."""
    policy = Policy(wide(kind).eval(), ModelConfig())
    each = kept_bytes(policy, vocabulary=60)
    assert saved_bytes(policy, 120, 60) - saved_bytes(policy, PROBE, 60) == (120 - PROBE) * each > 0
    recomputing = replace(policy, compute=ModelConfig(gradient_checkpointing=True))
    checkpoint_layers(policy.model)
    assert kept_bytes(recomputing, vocabulary=60) == 4 * 4 * 128 + 2 * each / 4
    some = ModelConfig(gradient_checkpointing=True, checkpointed_layers=3)
    kept = 3 * 4 * 128 + each / 4 + 2 * each / 4
    assert kept_bytes(replace(policy, compute=some), vocabulary=60) == kept


def test_a_forecast_counts_what_the_first_step_does(tmp_path: Path):
    """Sampled wholly, by the weights and rewards of the first step: counts are those of its record."""
    config = tiny_config(tmp_path / "run", run={"steps": 1}, samples={"every": 0})
    with closing(assemble(config, quiet)) as parts:
        found = forecast(parts, seconds=60, trial=True)
        text = as_text(found, parts.config, free=1 << 40, disk_free=1)
        lines = brief(found, free=1, disk_free=1 << 40)
    train(replace(config, run=replace(config.run, dir=str(tmp_path / "other"))), show=quiet)
    (_, step) = read_metrics(tmp_path / "other" / "metrics.jsonl")
    work = found.work
    assert (work.prompts, work.groups, work.rows, work.sampled) == (4, 4, 24, 24)
    assert work.rows == step["rollout/rows"]
    assert work.response_tokens == pytest.approx(step["rollout/sampled_tokens"] / 24)
    assert work.trained_positions == step["update/positions"]
    assert work.trained_positions is not None
    assert work.positions >= work.trained_positions
    assert work.optimizer_steps == 2
    assert found.disk.checkpoint == pytest.approx(
        sum((tmp_path / "other" / "checkpoints" / "step_00000001" / name).stat().st_size
            for name in ("model.safetensors", "optimizer.pt")), rel=0.05,
    )  # fmt: skip
    assert found.time.evaluations == 2
    assert found.time.step_s > 0
    assert found.time.run_s >= found.time.step_s
    assert "DOES NOT FIT" in text.splitlines()[-1]
    assert "DOES NOT FIT" in lines.splitlines()[-1]
    assert f"{work.positions:,} as prefix trees" in text


def test_responses_of_a_known_length(tmp_path: Path):
    config = tiny_config(tmp_path / "run", rollout={"max_tokens": 400}, guidance={"enabled": False})
    with closing(assemble(config, quiet)) as parts:
        short, long = (forecast(parts, seconds=0.1, response_tokens=n).work for n in (4, 60))
    assert 2 < short.response_tokens < 8
    assert 35 < long.response_tokens < 90
    assert long.positions > short.positions


def test_an_estimate_leaves_no_trace_in_a_run(tmp_path: Path):
    lines: list[str] = []
    runs = [
        train(tiny_config(tmp_path / name, run={"steps": 2}), show=lines.append, estimate_s=seconds)
        for name, seconds in (("without", 0.0), ("with", 0.5))
    ]
    assert sum(line.startswith("estimate: ") for line in lines) == 1
    one, other = (without_times(read_metrics(run.metrics_path)) for run in runs)
    assert one == other
    weights = [(run.model_dir / "model.safetensors").read_bytes() for run in runs]
    assert weights[0] == weights[1]
    states = [
        torch.load(run.directory / "checkpoints" / "step_00000002" / "optimizer.pt", weights_only=False)
        for run in runs
    ]
    assert torch.equal(states[0]["rng"]["torch"], states[1]["rng"]["torch"])


def test_limits(tmp_path: Path):
    memory = memory_bytes(torch.device("cpu"))
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < memory <= pages
    assert disk_bytes(tmp_path / "not" / "there" / "yet") > 0
