"""A mistake of the user is one line that names the key, and status 2; nothing is left behind."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from g2rpo_fast import train
from g2rpo_fast.assemble import assemble
from g2rpo_fast.cli import main
from g2rpo_fast.rewards import RewardError
from g2rpo_fast.safekeeping import FAULT
from runs import tiny_config

Act = Callable[[Path], object]
"""Spoils a model's directory."""


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("made") / "run"
    assemble(tiny_config(directory), lambda line: None).close()
    return directory / "embedded"


def cut(name: str, keep: float) -> Act:
    def act(model: Path) -> None:
        content = (model / name).read_bytes()
        (model / name).write_bytes(content[: int(len(content) * keep)])

    return act


def replaced(name: str, content: bytes) -> Act:
    return lambda model: (model / name).write_bytes(content)


def without(*names: str) -> Act:
    return lambda model: [(model / name).unlink() for name in names]


def strange(model: Path) -> None:
    values = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(values | {"model_type": "no_such_type"}))


MODELS: dict[str, Act] = {
    "weights cut short": cut("model.safetensors", 0.5),
    "weights cut in their header": cut("model.safetensors", 0.0001),
    "empty weights": cut("model.safetensors", 0),
    "no weights": without("model.safetensors"),
    "tokenizer cut short": cut("tokenizer.json", 0.5),
    "tokenizer is a list": replaced("tokenizer.json", b"[]"),
    "no tokenizer": without("tokenizer.json", "tokenizer_config.json"),
    "config cut short": cut("config.json", 0.5),
    "config is a list": replaced("config.json", b"[]"),
    "config is binary": replaced("config.json", b"\xff\xfe\x00"),
    "no config": without("config.json"),
    "unknown type": strange,
    "generation config cut short": replaced("generation_config.json", b'{"eos'),
    "generation config out of range": replaced("generation_config.json", b'{"max_new_tokens": -1}'),
}


def status_of(arguments: list[str], capsys) -> tuple[int, str]:
    status = main(["train", "embedded", "--run.threads", "1", "--run.steps", "1", *arguments])
    return status, capsys.readouterr().err


def assert_one_line(error: str, *words: str) -> None:
    lines = [line for line in error.splitlines() if "g2rpo-fast: " in line]
    assert len(lines) == 1
    assert error.strip().endswith(lines[0])
    assert all(word in lines[0] for word in words), lines[0]


@pytest.mark.parametrize("name", MODELS)
def test_model_that_cannot_be_read_is_one_line(name, made, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = Path(shutil.copytree(made / "model", tmp_path / "model"))
    MODELS[name](model)
    arguments = ["--model.path", str(model), "--data.path", str(made / "train.jsonl")]
    status, error = status_of(arguments, capsys)
    assert status == 2
    assert_one_line(error, "model.path: wanted", str(model))
    assert list((tmp_path / "runs").glob("*")) == []


def test_model_that_is_nowhere_is_one_line(made, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for path in (str(tmp_path / "none"), "./none", "nobody/nothing-of-this-name", "bad name!", ""):
        status, error = status_of(["--model.path", path, "--data.path", str(made / "train.jsonl")], capsys)
        assert status == 2, path
        assert_one_line(error, "model.path: wanted")


def test_other_mistakes_are_one_line(made, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00\x01")
    (tmp_path / "wrong.toml").write_text("[run\n")
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    packed = gzip.compress((made / "train.jsonl").read_bytes())
    (tmp_path / "half.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    model = ["--model.path", str(made / "model"), "--data.path"]
    for arguments, words in {
        ("--run.device", "cuda:99"): ("run.device: wanted", "cuda:99"),
        ("--run.device", "gpu0"): ("run.device: wanted", "gpu0"),
        ("--run.device", "meta"): ("run.device: wanted", "meta"),
        ("--run.dir", str(tmp_path / "file")): ("run.dir: wanted", "file"),
        ("--run.dir", "/proc/none/run"): ("run.dir: wanted", "/proc/none/run"),
        (*model, str(tmp_path / "empty")): ("data.path: wanted", str(tmp_path / "empty")),
        (*model, str(tmp_path / "half.jsonl.gz")): ("data.path: wanted", "half.jsonl.gz"),
        (*model, str(tmp_path / "none.jsonl")): ("data.path: wanted", "none.jsonl"),
    }.items():
        status, error = status_of(list(arguments), capsys)
        assert status == 2, arguments
        assert_one_line(error, *words)
    for source in ("binary.toml", "wrong.toml", "none.toml", str(tmp_path)):
        assert main(["train", source]) == 2
        assert_one_line(capsys.readouterr().err, source)


TEMPLATES = {
    "{{ raise_exception('no system role') }}": "no system role",
    "{% for m in messages %}{{ m.role": "unexpected end of template",
    "{{ messages[5].content + 'x' }}": "no element 5",
}


@pytest.mark.parametrize("template", TEMPLATES)
def test_chat_template_that_refuses_is_one_line(template, made, tmp_path, capsys):
    model = Path(shutil.copytree(made / "model", tmp_path / "model"))
    (model / "chat_template.jinja").write_text(template)
    arguments = ["--model.path", str(model), "--data.path", str(made / "train.jsonl"), "--data.chat"]
    arguments += ["--run.dir", str(tmp_path / "run")]
    for key, more in {"data.chat": [], "data.system_prompt": ["--data.system-prompt", "Be brief."]}.items():
        status, error = status_of([*arguments, *more], capsys)
        assert status == 2
        assert_one_line(error, f"{key}: wanted a chat template", TEMPLATES[template])


def test_settings_that_measure_or_teach_nothing_are_refused_or_told(made, tmp_path):
    with pytest.raises(ValueError, match=r"evaluate\.samples: wanted 1 .*greedy.*, got 4"):
        tiny_config(tmp_path, evaluate={"samples": 4})
    tiny_config(tmp_path, evaluate={"samples": 4, "temperature": 0.5})
    paths = {"model": {"path": str(made / "model")}, "data": {"path": str(made / "train.jsonl")}}
    alone = {"rollout": {"group_size": 1}, "guidance": {"enabled": False}, "run": {"steps": 0}}
    lines: list[str] = []
    train(tiny_config(tmp_path / "run", **paths, **alone), show=lines.append)
    assert any("warning: rollout.group_size = 1" in line for line in lines)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
def test_files_without_rights_are_one_line(tmp_path, capsys):
    (tmp_path / "closed.toml").write_text("")
    (tmp_path / "closed.toml").chmod(0)
    assert main(["train", str(tmp_path / "closed.toml")]) == 2
    assert_one_line(capsys.readouterr().err, "closed.toml")


def test_fault_of_the_program_keeps_its_traceback_and_asks_for_a_report(tmp_path, monkeypatch):
    monkeypatch.setattr(RewardError, "__init__", lambda *a: [][0])  # a mistake of ours, where a reward fails
    arguments = ["train", "embedded", "--run.threads", "1", "--embedded.warm-start-steps", "0"]
    arguments += ["--run.dir", str(tmp_path / "run"), "--reward.functions", "test_mistakes:fails"]
    arguments += ["--evaluate.profile-prompts", "1", "--evaluate.every", "0"]
    with pytest.raises(IndexError) as fault:
        main(arguments)
    saved, report = fault.value.__notes__
    assert "is saved in" in saved
    assert report == FAULT


def fails(response: str, answer: str, rollout) -> float:
    raise ZeroDivisionError
