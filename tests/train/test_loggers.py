"""Records of real runs in the services' own libraries, without a network; a run that goes on; what fails."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from g2rpo_fast.config import Config, config_from_dict
from g2rpo_fast.loggers import LOGGERS, LogConfig, LoggedRun, LoggerError, Loggers, called, check_installed
from g2rpo_fast.metrics import finite, read_metrics
from g2rpo_fast.train import train
from runs import tiny_config


def config_of(directory: Path, *names: str, steps: int = 2) -> Config:
    return tiny_config(
        directory,
        run={"dir": str(directory), "steps": steps},
        log={"to": names, "project": "tests"},
        checkpoint={"every": 1, "keep": 9},
        evaluate={"every": 0, "profile_prompts": 0},
        embedded={"warm_start_steps": 1, "train_rows": 32, "eval_rows": 8},
    )


def wanted_of(directory: Path) -> dict[int, dict[str, float]]:
    """Step -> finite numbers."""
    records = read_metrics(directory / "metrics.jsonl")
    numbers = {r["step"]: {k: v for k, v in finite(r).items() if k != "step"} for r in records}
    return {step: values for step, values in numbers.items() if values}


def run_and_go_on(directory: Path, name: str) -> list[str]:
    """Two steps; then the second again, as after a kill that came before its checkpoint; then a third."""
    lines: list[str] = []
    train(config_of(directory, name), show=lines.append)
    shutil.rmtree(directory / "model")
    shutil.rmtree(directory / "checkpoints" / "step_00000002")
    train(config_of(directory, name, steps=3), show=lines.append)
    return lines


def assert_same(found: Mapping[int, Mapping[str, float]], directory: Path, rel: float = 1e-12) -> None:
    wanted = wanted_of(directory)
    assert set(found) == set(wanted) == {1, 2, 3}
    for step, values in wanted.items():
        timeless = {name: value for name, value in values.items() if not name.startswith("time/")}
        assert timeless
        assert {name: found[step][name] for name in timeless} == pytest.approx(timeless, rel=rel, abs=1e-300)


def test_tensorboard_has_every_record_once(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    run_and_go_on(tmp_path / "run", "tensorboard")
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    found: dict[int, dict[str, float]] = {}
    for name in events.Tags()["scalars"]:
        steps = [event.step for event in events.Scalars(name)]
        assert steps == sorted(set(steps)), name
        for event in events.Scalars(name):
            found.setdefault(event.step, {})[name] = event.value
    assert_same(found, tmp_path / "run", rel=1e-6)  # it keeps float32
    assert (
        '"prompts_per_step"' in events.Tensors("settings/text_summary")[0].tensor_proto.string_val[0].decode()
    )


def test_mlflow_has_every_record_and_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracking = pytest.importorskip("mlflow.tracking")

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    run_and_go_on(tmp_path / "run", "mlflow")
    client = tracking.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("tests")
    assert experiment is not None
    (kept,) = client.search_runs([experiment.experiment_id])
    assert kept.info.status == "FINISHED"
    assert kept.data.params["run.prompts_per_step"] == "4"
    found: dict[int, dict[str, float]] = {}
    for name in kept.data.metrics:
        for metric in client.get_metric_history(kept.info.run_id, name):
            found.setdefault(metric.step, {})[name] = metric.value
    assert_same(found, tmp_path / "run")


def test_trackio_has_every_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    storage = pytest.importorskip("trackio.sqlite_storage").SQLiteStorage

    run_and_go_on(tmp_path / "run", "trackio")
    (name,) = storage.get_runs("tests")
    assert name.startswith("run-")
    found: dict[int, dict[str, float]] = {}
    for kept in storage.get_logs("tests", name):
        found.setdefault(kept["step"], {}).update(
            {k: v for k, v in kept.items() if isinstance(v, int | float) and k != "step"}
        )
    assert_same(found, tmp_path / "run")


def test_wandb_keeps_an_offline_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run_and_go_on(tmp_path / "run", "wandb")
    kept = sorted((tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(kept) == 2
    assert len({path.stem for path in kept}) == 1  # one run, which went on
    assert all(b"rollout/reward" in path.read_bytes() for path in kept)


@pytest.mark.parametrize("name", LOGGERS)
def test_a_library_that_is_not_there_is_told_before_anything_is_spent(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("g2rpo_fast.loggers.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=rf"^log\.to: wanted an installed package {name}, got none; pip"):
        check_installed([name])


def test_an_unknown_logger_is_refused() -> None:
    with pytest.raises(ValueError, match=r"log\.to"):
        config_from_dict({"log": {"to": ["tensorbord"]}})
    assert LogConfig(to=("wandb", "wandb")).to == ("wandb",)


class Breaking:
    """A logger whose service is gone from the second record on."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self.steps.append(step)
        if len(self.steps) > 1:
            raise ConnectionError("no route to host\nmore")

    def close(self, *, finished: bool) -> None:
        raise AssertionError("it was left already")


def test_a_logger_that_fails_is_left_with_one_line_and_the_others_go_on() -> None:
    kept: dict[int, Any] = {}

    class Keeping:
        def write(self, step: int, values: Mapping[str, float]) -> None:
            kept[step] = dict(values)

        def close(self, *, finished: bool) -> None:
            kept[-1] = finished

    lines: list[str] = []
    loggers = Loggers({"wandb": Breaking(), "mlflow": Keeping()}, lines.append)
    for step in range(3):
        loggers.write(step, {"loss": float(step)})
    loggers.close(finished=True)
    loggers.close(finished=False)  # a second time nothing happens
    assert lines == ["log.to: wandb: ConnectionError: no route to host; the run goes on without it"]
    assert kept == {0: {"loss": 0.0}, 1: {"loss": 1.0}, 2: {"loss": 2.0}, -1: True}


def test_an_error_of_a_library_names_it() -> None:
    def fails() -> None:
        raise KeyError("x")

    with pytest.raises(LoggerError, match=r"^mlflow: KeyError: 'x'$"):
        called("mlflow", fails)


def test_a_run_has_one_name_in_every_service_and_no_other_directory_has_it(tmp_path: Path) -> None:
    def logged(directory: Path) -> LoggedRun:
        settings = {"run": {"seed": 1}, "to": [1]}
        return LoggedRun(project="p", name="a b", directory=directory, settings=settings, last_step=-1)

    assert logged(tmp_path / "x").id == logged(tmp_path / "x").id != logged(tmp_path / "y").id
    assert logged(tmp_path).id.startswith("a-b-")
    assert logged(tmp_path).flat == {"run.seed": 1, "to": [1]}
    json.dumps(logged(tmp_path).flat)
