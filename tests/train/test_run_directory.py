"""A run directory: one run, one process, known data; what a failed try leaves; what a newer version reads."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import AutoModelForCausalLM

from g2rpo_fast import train
from g2rpo_fast.assemble import assemble
from g2rpo_fast.config import Config
from g2rpo_fast.metrics import read_metrics
from g2rpo_fast.run_directory import open_directory, store_config
from runs import HELPERS, quiet, tiny_config

SHORT = {"run": {"steps": 2}, "evaluate": {"every": 0, "profile_prompts": 0}}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """The embedded model and data of a run."""
    directory = tmp_path_factory.mktemp("made") / "run"
    assemble(tiny_config(directory), quiet).close()
    return directory / "embedded"


def config_of(directory: Path, made: Path, **sections: dict) -> Config:
    wanted = {**SHORT, "model": {"path": str(made / "model")}}
    wanted["data"] = {"path": str(made / "train.jsonl"), "eval_path": str(made / "eval.jsonl")}
    for name, section in sections.items():
        wanted[name] = wanted.get(name, {}) | section
    return tiny_config(directory, **wanted)


def copied(made: Path, to: Path) -> Path:
    subprocess.run(["cp", "-r", made, to], check=True)
    return to


def test_failed_try_leaves_the_directory_to_the_next(made, tmp_path):
    for wrong in (
        {"data": {"path": str(tmp_path / "mistyped.jsonl")}},
        {"model": {"path": str(tmp_path / "mistyped")}},
        {"rollout": {"max_tokens": 5000}},
    ):
        with pytest.raises(ValueError, match=r"mistyped|max_tokens"):
            train(config_of(tmp_path / "run", made, **wrong), show=quiet)
        assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    with pytest.raises(ValueError, match="max_tokens"):
        train(config_of(tmp_path / "run", made, rollout={"max_tokens": 5000}), show=quiet)
    result = train(config_of(tmp_path / "run", made), show=quiet)
    assert [r["step"] for r in read_metrics(result.metrics_path)] == [0, 1, 2]


def test_directories_named_by_the_clock_are_made_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    opened = [open_directory(Config()) for _ in range(4)]
    assert len({run.path for run in opened}) == 4
    assert all(run.created and run.path.is_dir() for run in opened)


HOLD = """
import sys
from g2rpo_fast.run_directory import open_directory
sys.path.insert(0, sys.argv[2])
from runs import tiny_config
from pathlib import Path
run = open_directory(tiny_config(Path(sys.argv[1])))
print("held", flush=True)
sys.stdin.read()
"""


def test_second_process_is_refused_until_the_first_ends(tmp_path):
    config = tiny_config(tmp_path / "run")
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run"), str(HELPERS)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(
            ValueError, match=rf"no other process uses, got .*run, used by process {other.pid} "
        ):
            open_directory(config)
        other.kill()
    open_directory(config).lock.close()


def test_configuration_of_an_older_version_takes_the_defaults_of_new_keys(tmp_path):
    store_config(open_directory(tiny_config(tmp_path)))
    file = tmp_path / "config.json"
    stored = json.loads(file.read_text())
    del stored["rollout"]["top_k"], stored["tree"]
    stored["rollout"]["long_gone"] = 3
    file.write_text(json.dumps(stored))
    lines: list[str] = []
    open_directory(tiny_config(tmp_path), lines.append)
    assert len(lines) == 1
    assert "rollout.long_gone" in lines[0]
    with pytest.raises(ValueError, match=r"rollout\.top_k: wanted 0, got 7"):
        open_directory(tiny_config(tmp_path, rollout={"top_k": 7}))
    file.write_text("{")
    with pytest.raises(ValueError, match=r"run\.dir: .*config\.json, got a damaged one"):
        open_directory(tiny_config(tmp_path))


def test_directory_that_cannot_be_used_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    for name in (tmp_path / "file", tmp_path / "file" / "run", Path("/proc/none/run")):
        with pytest.raises(
            ValueError, match=r"run\.dir: wanted a directory that can be made and written, got"
        ):
            open_directory(tiny_config(name))


def test_changed_data_or_model_is_said_and_accepted_only_when_asked(made, tmp_path):
    source = copied(made, tmp_path / "source")
    config = config_of(tmp_path / "run", source, checkpoint={"every": 1}, run={"steps": 1})
    train(config, show=quiet)
    with (source / "train.jsonl").open("a") as file:
        file.write('{"prompt": "1:", "answer": "1", "trace": "1"}\n')
    model = AutoModelForCausalLM.from_pretrained(source / "model")
    next(model.parameters()).data[0, 0] += 1
    model.save_pretrained(source / "model")
    longer = {"run": {"steps": 2}, "checkpoint": {"every": 1}}
    with pytest.raises(ValueError, match=r"data\.path: wanted rows 64, got 65.*model\.path: .*accept_"):
        train(config_of(tmp_path / "run", source, **longer), show=quiet)
    longer["run"]["accept_changes"] = True
    lines: list[str] = []
    train(config_of(tmp_path / "run", source, **longer), show=lines.append)
    assert any("accepted: data.path: wanted rows 64, got 65" in line for line in lines)
    (accepted,) = json.loads((tmp_path / "run" / "content.json").read_text())["accepted"]
    assert accepted["after_step"] == 1
    assert accepted["changes"][0] == "data.path: wanted rows 64, got 65"
    longer["run"] = {"steps": 3}
    train(config_of(tmp_path / "run", source, **longer), show=quiet)  # they are this run's now


def test_same_data_and_model_elsewhere_continue_the_run(made, tmp_path):
    train(config_of(tmp_path / "run", made, run={"steps": 1}), show=quiet)
    elsewhere = copied(made, tmp_path / "elsewhere")
    result = train(config_of(tmp_path / "run", elsewhere, run={"steps": 2}), show=quiet)
    assert [r["step"] for r in read_metrics(result.metrics_path)] == [0, 1, 2]


def test_rows_of_python_continue_a_run_when_they_are_the_same(made, tmp_path):
    rows = [json.loads(line) for line in (made / "train.jsonl").read_text().splitlines()]

    def config(given: Any, steps: int) -> Config:
        config = config_of(tmp_path / "run", made, run={"steps": steps})
        return dataclasses.replace(config, data=dataclasses.replace(config.data, path=given))

    result = train(config(rows, 1), show=quiet)
    with pytest.raises(ValueError, match=r"run\.dir: .*data\.path: wanted blake2b"):
        train(config(rows[::-1], 2), show=quiet)
    train(config(datasets.Dataset.from_list(rows), 2), show=quiet)
    assert [r["step"] for r in read_metrics(result.metrics_path)] == [0, 1, 2]
    assert json.loads((tmp_path / "run" / "config.json").read_text())["data"]["path"] == "64 rows from Python"
