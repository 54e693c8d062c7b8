"""`g2rpo_fast.evaluate` and `sample`: from Python what the commands do, with one's own functions and rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from commands import printed
from g2rpo_fast import evaluate, sample


@pytest.fixture
def rows(trained: Path) -> Path:
    return trained / "embedded" / "eval.jsonl"


def lines_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_evaluate_measures_what_the_command_prints(trained, rows, tmp_path, capsys):
    words: list[str | Path] = ["eval", f"{trained}:2", rows, "--samples", "3", "--k", "2", "--seed", "5"]
    out = tmp_path / "items.jsonl"
    told = json.loads(printed([*words, "--out", out, "--json"], capsys))
    seen = []
    found = evaluate(
        f"{trained}:2", rows, samples=3, k=[2], run={"seed": 5}, on_item=lambda item: seen.append(item.id)
    )
    assert json.loads(json.dumps(found.to_dict())) == told
    assert json.loads(json.dumps([item.to_dict() for item in found.items])) == lines_of(out)
    assert seen == [f"eval:{number}" for number in range(1, 9)]
    text = printed(words, capsys)
    assert text == f"{found}\n"
    assert f"{trained}:2 on {rows}: 8 problems, without guidance" in text


def test_rows_and_rewards_from_python_and_settings_over_those_of_the_run(trained, rows):
    def longer_than_two(response: str, answer: str, rollout: Any) -> float:
        return float(len(response) > 2)

    some = lines_of(rows)[:3]
    found = evaluate(
        trained,
        some,
        samples=0,
        reward={"functions": [longer_than_two]},
        rollout={"max_tokens": 2},
        data={"max_prompt_tokens": len(some[0]["prompt"])},
    )
    assert len(found.items) + found.left_out["too_long"] == 3
    assert found.settings["max_tokens"] == 2
    assert found.summary["greedy"]["right"] == 0  # two characters at most
    again = evaluate(trained, some, samples=0, reward={"functions": [longer_than_two]})
    assert again.settings["max_tokens"] == 40
    assert again.summary["greedy"]["right"] == sum(len(item.greedy.text) > 2 for item in again.items) > 0


def test_sample_gives_what_the_command_prints(trained, rows, capsys):
    words: list[str | Path] = [
        "sample",
        trained,
        "--file",
        rows,
        "--guidance-tokens",
        "7",
        "--n",
        "2",
        "--json",
    ]
    told = [json.loads(line) for line in printed(words, capsys).splitlines()]
    found = sample(trained, rows=lines_of(rows), guidance_tokens=7, n=2)
    assert [json.loads(json.dumps(one.to_dict())) for one in found] == told
    assert {len(one.guidance_ids) for one in found} == {7}


def test_prompts_are_asked_one_by_one_as_together(trained):
    settings = {"data": {"template": "{prompt}:"}, "rollout": {"temperature": 0, "max_tokens": 12}}
    together = sample(trained, ["3142", "87"], **settings)
    assert [one.prompt for one in together] == ["3142:", "87:"]
    alone = [sample(trained, text, **settings)[0] for text in ("3142", "87")]
    assert [one.samples for one in alone] == [one.samples for one in together]
    assert len(together[0].samples[0].token_ids) <= 12


def test_the_program_s_threads_stay_what_they_were(trained, rows):
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        sample(trained, "3142:", run={"threads": before + 2})
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


NO_DICT: Any = {"run": 3}
REFUSED = {
    "no model": (
        lambda run, rows: evaluate("./nosuch", rows),
        "model: wanted a model's directory, a hub id, or RUN",
    ),
    "another section": (
        lambda run, rows: evaluate(run, rows, optim={"lr": 1}),
        "unknown section optim; known: run, model, data, rollout, reward",
    ),
    "a mistyped key": (
        lambda run, rows: evaluate(run, rows, rollout={"max_tokns": 3}),
        "unknown key rollout.max_tokns; the nearest name is rollout.max_tokens",
    ),
    "no dict": (lambda run, rows: evaluate(run, rows, **NO_DICT), "run: wanted a dict of its keys, got 3"),
    "a wrong value": (
        lambda run, rows: evaluate(run, rows, run={"seed": -1}),
        "run.seed: wanted at least 0, got -1",
    ),
    "greedy samples": (
        lambda run, rows: evaluate(run, rows, rollout={"temperature": 0}),
        "temperature: wanted above 0 for samples (the greedy response is measured beside them; samples 0",
    ),
    "k above": (lambda run, rows: evaluate(run, rows, samples=2, k=[3]), "k: wanted from 1 to samples = 2"),
    "no file": (lambda run, rows: evaluate(run, "none.jsonl"), "rows: wanted a file of JSON lines"),
    "no rows": (lambda run, rows: evaluate(run, []), "rows: wanted a file, a folder, a hub id, a list of"),
    "a number": (lambda run, rows: evaluate(run, 7), "rows: wanted a file, a folder, a hub id, a list of"),
    "a bad row": (
        lambda run, rows: sample(run, rows=[{"prompt": "1:"}, {"prompt": 3}]),
        "rows: rows (2 rows from Python), row 2",
    ),
    "neither": (lambda run, rows: sample(run), "sample: wanted prompt or rows, got neither"),
    "both": (lambda run, rows: sample(run, "1:", rows=rows), "sample: wanted prompt or rows, got both"),
    "no text": (lambda run, rows: sample(run, ["1:", " "]), "prompt: wanted a text, got ' '"),
    "guided prompts": (
        lambda run, rows: sample(run, "1:", guidance_tokens=3),
        "guidance_tokens: wanted 0 with prompt (guidance is of a row's trace: rows), got 3",
    ),
    "too much guidance": (
        lambda run, rows: sample(run, rows=rows, guidance_tokens=40),
        "guidance_tokens: wanted from 0 to below max_tokens = 40",
    ),
    "no traces": (
        lambda run, rows: sample(run, rows=[{"prompt": "1:"}], guidance_tokens=3),
        "guidance_tokens: wanted 0, or rows with a trace in column 'trace'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_call_is_refused_in_one_line_by_the_argument_s_name(trained, rows, case):
    call, said = REFUSED[case]
    with pytest.raises(ValueError) as error:
        call(trained, rows)
    assert str(error.value).startswith(said), error.value
    assert "\n" not in str(error.value)
