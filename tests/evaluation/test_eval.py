"""`g2rpo-fast eval`: it measures what training measured, of a run, a checkpoint and an export alike."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from commands import called, printed, refusal
from g2rpo_fast.metrics import read_metrics

SAME = ["--reward.functions", "runs:wobble", "--max-tokens", "40"]
"""What the run's configuration says, for models that have none."""


@pytest.fixture
def rows(trained: Path) -> Path:
    return trained / "embedded" / "eval.jsonl"


def items_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def accuracies(run: Path) -> dict[int, float]:
    """Step -> held-out accuracy, as training measured it."""
    records = read_metrics(run / "metrics.jsonl")
    return {r["step"]: r["eval/accuracy"] for r in records if "eval/accuracy" in r}


def test_run_checkpoint_and_export_agree_item_by_item(trained, rows, tmp_path, capsys):
    printed(["export", trained, tmp_path / "plain"], capsys)
    models = {"run": trained, "last": f"{trained}:4", "plain": tmp_path / "plain", "first": f"{trained}:2"}
    found = {}
    for name, model in models.items():
        out = tmp_path / f"{name}.jsonl"
        more = SAME if name == "plain" else []
        text = printed(["eval", model, rows, "--samples", "2", "--out", out, *more], capsys)
        assert text.startswith(f"{model} on {rows}: 8 problems, without guidance\n")
        found[name] = items_of(out)
    assert found["run"] == found["last"] == found["plain"] != found["first"]
    records = accuracies(trained)
    for step, name in ((4, "run"), (2, "first")):
        assert sum(item["greedy"]["right"] for item in found[name]) / 8 == records[step]


def test_best_is_the_checkpoint_of_the_best_accuracy(trained, rows, capsys):
    best, accuracy = max(accuracies(trained).items(), key=lambda pair: pair[1])
    told = json.loads(printed(["eval", f"{trained}:best", rows, "--samples", "0", "--json"], capsys))
    assert (told["step"], told["greedy"]["accuracy"]) == (best, accuracy)


def test_data_of_other_formats_are_those_of_json_lines(trained, rows, tmp_path, capsys):
    read = [json.loads(line) for line in rows.read_text().splitlines()]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(read), tmp_path / "rows.parquet")
    found = [
        json.loads(printed(["eval", trained, data, "--samples", "0", "--json"], capsys))
        for data in (rows, tmp_path / "rows.parquet")
    ]
    assert found[0].pop("data") != found[1].pop("data")
    assert found[0] == found[1]
    shown = ["sample", trained, "--max-tokens", "2", "--json", "--rows", "1", "--file"]
    assert printed([*shown, rows], capsys) == printed([*shown, tmp_path / "rows.parquet"], capsys)


def parity(response: str, answer: str, rollout: Any) -> float:
    """Right and wrong about equally often, whatever the model."""
    return float(sum(map(ord, response)) % 2)


def last_two(response: str, rollout: Any) -> str | None:
    """No answer where the second last character is a sign."""
    return response[-2:] if response[-2:-1].isdigit() else None


setattr(parity, "final_answer", last_two)  # noqa: B010


def test_figures_are_those_of_the_items(trained, rows, tmp_path, capsys):
    out = tmp_path / "items.jsonl"
    words: list[str | Path] = ["eval", trained, rows, "--samples", "5", "--k", "2", "5"]
    words += ["--reward.functions", "test_eval:parity"]
    told = json.loads(printed([*words, "--out", out, "--json"], capsys))
    items = items_of(out)
    assert [item["id"] for item in items] == [f"eval:{line}" for line in range(1, 9)]
    assert told["problems"] == told["greedy"]["judged"] == 8
    assert told["greedy"]["right"] == sum(item["greedy"]["right"] for item in items)
    low, high = told["greedy"]["interval"]
    assert 0 < low < told["greedy"]["accuracy"] < high < 1
    for k in (2, 5):
        shares = [
            [any(s["right"] for s in subset) for subset in combinations(item["samples"], k)] for item in items
        ]
        wanted = sum(sum(share) / len(share) for share in shares) / 8
        assert told["sampled"]["pass@k"][str(k)]["value"] == pytest.approx(wanted, abs=1e-12)
    assert 0 < told["sampled"]["pass@k"]["2"]["interval"][0] < told["sampled"]["pass@k"]["2"]["value"] < 1
    for item in items:
        given = [s["answer"] for s in item["samples"] if s["answer"] is not None]
        winner, votes = Counter(given).most_common(1)[0] if given else (None, 0)
        assert (item["vote"] or {}).get("answer") == winner
        assert (item["vote"] or {"votes": 0})["votes"] == votes
    right = sum(bool(item["vote"] and item["vote"]["right"]) for item in items)
    assert told["sampled"]["majority"]["value"] == right / 8
    assert told["sampled"]["tokens"] == sum(s["tokens"] for item in items for s in item["samples"]) / 40
    assert told["settings"]["reward"] == ["test_eval:parity"]


def test_the_seed_draws_the_samples_and_not_the_greedy_response(trained, rows, tmp_path, capsys):
    found = []
    for number, seed in enumerate(("3", "3", "4")):
        out = tmp_path / f"{number}.jsonl"
        printed(["eval", trained, rows, "--samples", "2", "--seed", seed, "--out", out], capsys)
        found.append(items_of(out))
    assert found[0] == found[1] != found[2]
    assert [item["greedy"] for item in found[1]] == [item["greedy"] for item in found[2]]


def whole(responses: list[str], answers: list[str], rollouts: list[Any]) -> list[float]:
    """Right when it is among the shorter half of all."""
    lengths = sorted(map(len, responses))
    return [float(len(response) <= lengths[len(lengths) // 2]) for response in responses]


setattr(whole, "scope", "batch")  # noqa: B010


def test_a_reward_of_all_rollouts_sees_all_of_them_and_may_have_no_answers_to_vote_on(trained, rows, capsys):
    words: list[str | Path] = ["eval", trained, rows, "--samples", "2"]
    words += ["--reward.functions", "test_eval:whole"]
    text = printed([*words, "--rollout.max-rows", "2"], capsys)
    assert text == printed(words, capsys)
    assert "majority of 2  not measured: the reward tells of no final answers" in text


def stopping(response: str, answer: str, rollout: Any) -> float:
    if rollout.prompt.id == "eval:3":
        raise KeyboardInterrupt
    return 1.0


def test_ctrl_c_leaves_what_is_done_beside_the_file(trained, rows, tmp_path, capsys):
    out = tmp_path / "items.jsonl"
    out.write_text("of an earlier evaluation\n")
    words: list[str | Path] = ["eval", trained, rows, "--samples", "0", "--out", out]
    words += ["--rollout.max-rows", "1", "--reward.functions", "test_eval:stopping"]
    status, told, err = called(words, capsys)
    assert (status, told) == (130, "")
    assert err == f"g2rpo-fast: stopped by Ctrl-C. 2 problems are done, in {out}.partial\n"
    assert [item["id"] for item in items_of(Path(f"{out}.partial"))] == ["eval:1", "eval:2"]
    assert out.read_text() == "of an earlier evaluation\n"


def test_rows_that_cannot_be_used_are_told(trained, rows, tmp_path, capsys):
    data = tmp_path / "rows.jsonl"
    data.write_text("no json\n" + rows.read_text())
    words: list[str | Path] = ["eval", trained, data, "--samples", "0"]
    assert "line 1: not JSON" in refusal(words, capsys)
    text = printed([*words, "--data.on-bad-row", "skip"], capsys)
    assert "8 problems, 1 cannot be used left out, without guidance" in text


def test_gsm8k_s_own_rows_and_templates_need_no_training_file(trained, tmp_path, capsys):
    data = tmp_path / "test.jsonl"
    data.write_text(json.dumps({"question": "31:", "answer": "1>3\n#### 13"}) + "\n")
    out = tmp_path / "items.jsonl"
    words: list[str | Path] = ["eval", trained / "model", data, "--samples", "0", "--max-tokens", "8"]
    assert refusal(words, capsys) == (
        f"data.prompt_column: wanted a column of {data} (question, answer), got 'prompt'; its rows look like "
        "GSM8K's own: --data.format gsm8k"
    )
    printed([*words, "--data.format", "gsm8k", "--data.template", "{prompt}", "--out", out], capsys)
    (item,) = items_of(out)
    assert (item["prompt"], item["reference"]) == ("31:", "13")


def empty(tmp_path: Path) -> Path:
    (tmp_path / "empty.jsonl").write_text("\n\n")
    return tmp_path / "empty.jsonl"


BAD = {
    "no arguments": ("", "eval: wanted MODEL DATA first, then options, got no MODEL DATA; --help tells more"),
    "no data": ("{run}", "eval: wanted MODEL DATA first, then options, got no DATA; --help tells more"),
    "too much": ("{run} {rows} more", "eval: wanted MODEL DATA, got also more"),
    "no such run": ("{tmp}/none {rows}", "MODEL: wanted a model's directory, a hub id, or RUN[:STEP]"),
    "no such step": (
        "{run}:3 {rows}",
        "MODEL: wanted a step with a checkpoint in {run}, got 3 (checkpoints of",
    ),
    "no step": ("{run}:last {rows}", "MODEL: wanted {run}:STEP with a number or best, got 'last'"),
    "no run before the step": (
        "{run}/model:3 {rows}",
        "MODEL: wanted a run's directory before :3, got {run}",
    ),
    "no model": (
        "{run}/embedded {rows}",
        "MODEL: wanted a model's or a run's directory, got {run}/embedded: a",
    ),
    "no such file": ("{run} {tmp}/none", "DATA: wanted a file of JSON lines, got '{tmp}/none', which is not"),
    "empty data": ("{run} {empty}", "DATA: wanted a file with JSON lines, got {empty}, which has no rows"),
    "missing column": (
        "{run} {rows} --data.answer-column gold",
        "data.answer_column: wanted a column of {rows} (prompt, trace, answer), got 'gold'",
    ),
    "no such reward": ("{run} {rows} --reward.functions runs:none", "reward.functions: "),
    "no such key": ("{run} {rows} --data.path x", "Unrecognized options: --data.path, x"),
    "another engine": ("{run} {rows} --rollout.engine vllm", "rollout.engine: wanted local (this command"),
    "negative samples": ("{run} {rows} --samples -1", "--samples: wanted at least 0, got -1"),
    "k above": ("{run} {rows} --samples 2 --k 1 4", "--k: wanted from 1 to --samples = 2, got 4"),
    "greedy samples": ("{run} {rows} --temperature 0", "--temperature: wanted above 0 for samples"),
    "too long": ("{run} {rows} --max-tokens 5000", "rollout.max_tokens: wanted at most 503 (the model has"),
    "out is a folder": ("{run} {rows} --out {tmp}", "--out: wanted a file, got {tmp}, which is a directory"),
    "out in no folder": ("{run} {rows} --out {tmp}/a/b", "--out: wanted a file that can be written, got"),
}


@pytest.mark.parametrize("name", BAD)
def test_mistakes_are_one_line(name, trained, rows, tmp_path, capsys):
    words, message = BAD[name]
    known = {"run": trained, "rows": rows, "tmp": tmp_path, "empty": empty(tmp_path)}
    line = refusal(["eval", *words.format(**known).split()], capsys)
    assert line.startswith(message.format(**known)), line


def test_a_hub_id_without_a_network_is_one_line(rows, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "/none")
    line = refusal(["eval", "nobody/nothing-0.1B", rows], capsys)
    assert line.startswith(
        "MODEL: wanted a directory that is there, or a model of the hub, got 'nobody/nothing-0.1B'"
    )


def test_runs_that_cannot_be_read_are_named(trained, rows, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(trained, copy)
    weights = copy / "checkpoints" / "step_00000004" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "whose model.safetensors has" in refusal(["eval", f"{copy}:4", rows], capsys)
    shutil.rmtree(copy / "model")
    assert refusal(["eval", copy, rows], capsys).startswith(
        f"MODEL: wanted a finished run, got {copy}, which has no model yet (checkpoints of steps"
    )
    (copy / "config.json").write_text("{")
    assert f"wanted JSON in {copy}/config.json" in refusal(["eval", copy, rows], capsys)
    (copy / "config.json").unlink()
    assert "a run that was stopped before it began" in refusal(["eval", copy, rows], capsys)


def test_help_needs_no_model_and_starts_from_the_defaults(capsys):
    text = printed(["eval", "--help"], capsys)
    assert "--samples INT" in text
    assert "Most tokens of a response, its guidance included. (default: 512)" in " ".join(text.split())
