"""An exported model in EleutherAI's lm-eval: right where `g2rpo-fast eval` finds it right, nowhere else."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from commands import printed
from g2rpo_fast import train
from g2rpo_fast.embedded.prepare import write_rows
from g2rpo_fast.embedded.task import draw_rows
from runs import quiet, tiny_config

TASK = """
task: sort_digits
dataset_path: json
dataset_kwargs:
  data_files: {{test: {rows}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["<eos>"], do_sample: false, max_gen_toks: 72}}
filter_list:
  - name: after_the_mark
    filter:
      - {{function: regex, regex_pattern: "#([0-9]+)$"}}
      - {{function: take_first}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""


@pytest.mark.deep
def test_lm_eval_finds_the_same_accuracy_of_an_exported_model(tmp_path: Path, monkeypatch, capsys) -> None:
    lm_eval = pytest.importorskip("lm_eval", reason="needs pip install g2rpo-fast[lm-eval]")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    config = tiny_config(tmp_path / "run", run={"steps": 1}, embedded={"warm_start_steps": 150})
    train(config, show=quiet)
    rows = tmp_path / "rows.jsonl"
    write_rows(rows, draw_rows(np.random.default_rng(0), (3, 4, 5, 6), 60))
    printed(["export", tmp_path / "run", tmp_path / "made"], capsys)
    words: list[str | Path] = ["eval", tmp_path / "made", rows, "--samples", "0", "--max-tokens", "72"]
    words += ["--reward.functions", "exact_match", "--reward.answer-marker", "#"]
    told = json.loads(printed([*words, "--out", tmp_path / "items", "--json"], capsys))
    ours = [json.loads(line)["greedy"]["right"] for line in (tmp_path / "items").read_text().splitlines()]

    (tmp_path / "task.yaml").write_text(TASK.format(rows=rows))
    found = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(tmp_path / "made"), "device": "cpu", "dtype": "float32"},
        tasks=["sort_digits"],
        task_manager=lm_eval.tasks.TaskManager(include_path=str(tmp_path), include_defaults=False),
        batch_size=1,
        log_samples=True,
    )
    theirs = {row["doc_id"]: row["exact_match"] == 1.0 for row in found["samples"]["sort_digits"]}
    assert [theirs[place] for place in range(60)] == ours
    assert found["results"]["sort_digits"]["exact_match,after_the_mark"] == told["greedy"]["accuracy"]
    assert 0.1 < told["greedy"]["accuracy"] < 0.9
