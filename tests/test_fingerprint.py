"""Data, model and reference are known by their content."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from g2rpo_fast.embedded import EmbeddedConfig, EmbeddedPaths, prepare
from g2rpo_fast.fingerprint import Fingerprint, changes, file_content, fingerprint

CONFIG = EmbeddedConfig(train_rows=20, eval_rows=5, warm_start_steps=0)


@pytest.fixture
def made(tmp_path: Path) -> EmbeddedPaths:
    return prepare(tmp_path / "made", CONFIG, seed=3, report=lambda line: None)


def of(made: EmbeddedPaths, *, reference: bool = False) -> Fingerprint:
    model = str(made.model_dir)
    contents = (file_content(str(path)) for path in (made.train_path, made.eval_path))
    return fingerprint(model, *contents, reference_path=model if reference else None)


def test_same_content_elsewhere_is_the_same(made: EmbeddedPaths, tmp_path: Path) -> None:
    before = of(made, reference=True)
    assert (before["data.path"]["rows"], before["data.eval_path"]["rows"]) == (20, 5)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(before["model.path"])
    assert before["reference"] == before["model.path"]
    copied = Path(shutil.copytree(made.model_dir, tmp_path / "copy"))
    (copied / "README.md").write_text("nothing that is loaded")
    again = fingerprint(
        str(copied), before["data.path"], before["data.eval_path"], reference_path=str(copied)
    )
    assert changes(json.loads(json.dumps(before)), again) == []


def test_made_again_from_the_same_seed_is_the_same(made: EmbeddedPaths, tmp_path: Path) -> None:
    again = prepare(tmp_path / "again", CONFIG, seed=3, report=lambda line: None)
    assert changes(of(made), of(again)) == []
    other = prepare(tmp_path / "other", CONFIG, seed=4, report=lambda line: None)
    assert [line.split(":")[0] for line in changes(of(made), of(other))] == [
        "data.path", "data.eval_path", "model.path",
    ]  # fmt: skip


def test_one_more_row_is_said_with_both_counts(made: EmbeddedPaths) -> None:
    before = of(made)
    with made.train_path.open("a") as file:
        file.write('\n{"prompt": "1:", "answer": "1", "trace": "1"}\n')
    rows, digest = changes(before, of(made))
    assert rows == "data.path: wanted rows 20, got 21"
    assert digest.startswith("data.path: wanted blake2b ")


def test_one_changed_answer_or_weight_is_said(made: EmbeddedPaths) -> None:
    before = of(made)
    text = made.eval_path.read_text()
    made.eval_path.write_text(text.replace("1", "2", 1))
    model = AutoModelForCausalLM.from_pretrained(made.model_dir)
    next(model.parameters()).data[0, 0] += 1
    model.save_pretrained(made.model_dir)
    (made.model_dir / "chat_template.jinja").write_text("x")
    found = [line.split(",")[0].rsplit(" ", 1)[0] for line in changes(before, of(made))]
    assert found == [
        "data.eval_path: wanted blake2b",
        "model.path: wanted model.safetensors",
        "model.path: wanted chat_template.jinja",
    ]


def test_a_reference_that_comes_or_goes_is_said(made: EmbeddedPaths) -> None:
    with_one, without = of(made, reference=True), of(made)
    assert all(line.startswith("reference: wanted ") for line in changes(with_one, without))
    assert len(changes(without, with_one)) == len(with_one["reference"]) > 0
