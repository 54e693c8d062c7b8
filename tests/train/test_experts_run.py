"""A run of a mixture of experts whose configuration asks for the loss that balances them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from commands import called
from g2rpo_fast.metrics import read_metrics
from g2rpo_fast.rollout import RolloutConfig
from g2rpo_fast.train import train
from model_runs import Paths, check_that_it_goes_on, config_of, made_of
from runs import quiet, without_times


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    directory = tmp_path_factory.mktemp("experts")
    return made_of("qwen3_moe", directory, output_router_logits=True, router_aux_loss_coef=0.3)


def test_run_balances_experts_and_goes_on_bit_for_bit(experts: Paths, tmp_path: Path) -> None:
    lines: list[str] = []
    rollout = {"record_routing": True}
    whole = train(config_of(tmp_path / "whole", experts, 2, rollout=rollout), show=lines.append)
    assert "model: experts are balanced by a loss, times 0.3" in lines
    records = read_metrics(whole.metrics_path)
    assert all(record["update/token_ratio"] > 1.2 for record in records[1:])
    assert all(record["update/router_aux"] > 1 for record in records[1:])
    assert all(record["mismatch/max_abs"] < 1e-4 for record in records[1:])
    assert all(record["mismatch/routing"] < 0.01 for record in records[1:])
    assert json.loads((whole.model_dir / "config.json").read_text())["output_router_logits"]
    check_that_it_goes_on(tmp_path / "broken", experts, whole, rollout=rollout)


def test_it_can_be_left_out(experts: Paths, tmp_path: Path) -> None:
    config = config_of(tmp_path / "run", experts, 1, model=experts["model"] | {"router_aux": 0.0})
    lines: list[str] = []
    (_, record) = read_metrics(train(config, show=lines.append).metrics_path)
    assert "update/router_aux" not in record
    assert not any("balanced" in line for line in lines)


def test_plan_runs_with_it(experts: Paths, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        f"--model.path={experts['model']['path']}", f"--data.path={experts['data']['path']}",
        "--run.threads=1", "--run.prompts-per-step=2", "--rollout.group-size=4", "--rollout.max-tokens=40",
        "--reward.functions=runs:wobble", "--seconds=0.2",
    ]  # fmt: skip
    status, _, err = called(["plan", *words], capsys)
    assert status == 0, err


@pytest.mark.parametrize("replays", [False, True])
def test_one_batch_ahead_is_compared_with_the_weights_that_drew_it(
    replays: bool, experts: Paths, tmp_path: Path
) -> None:
    """Stale weights may choose otherwise, replayed or not; the record waits in checkpoints."""
    sections: dict[str, Any] = {
        "rollout": {"record_routing": True},
        "objective": {"importance": "token_truncate", "replay_routing": replays},
        "optim": {"lr": 0.01},
    }
    config = config_of(tmp_path, experts, 2, **sections | {"run": {"steps": 2, "ahead": 1}})
    whole = train(config, show=quiet)
    records = read_metrics(whole.metrics_path)
    assert records[1]["mismatch/routing"] < 0.01 < records[2]["mismatch/routing"] < 1
    for step in (tmp_path / "checkpoints").glob("step_*2"):
        shutil.rmtree(step)
    shutil.rmtree(whole.model_dir)
    again = read_metrics(train(config, show=quiet).metrics_path)
    assert without_times(again) == without_times(records)


def test_replay_wants_a_record(experts: Paths, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"replay_routing: wanted false without rollout\.record_routing"):
        config_of(tmp_path, experts, 1, objective={"replay_routing": True})


def test_vllm_tells_of_no_experts() -> None:
    with pytest.raises(ValueError, match=r"record_routing: wanted false with rollout\.engine = vllm"):
        RolloutConfig(engine="vllm", record_routing=True)


def test_a_dense_model_has_no_experts_to_balance(tmp_path: Path) -> None:
    paths = made_of("llama", tmp_path)
    config = config_of(tmp_path / "run", paths, 1, model=paths["model"] | {"router_aux": 0.1})
    with pytest.raises(ValueError, match=r"llama: wanted a loss of experts .* got no router's logits"):
        train(config, show=quiet)
