"""`g2rpo-fast plan` and `train --plan`, as they are typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from commands import called, printed

TINY = [
    "--run.threads", "1", "--run.prompts-per-step", "2", "--rollout.group-size", "4",
    "--embedded.warm-start-steps", "2", "--embedded.train-rows", "32", "--embedded.eval-rows", "8",
    "--optim.updates-per-batch", "1", "--seconds", "0.2",
]  # fmt: skip


def test_a_plan_in_words_and_in_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    text = printed(["plan", *TINY], capsys)
    for word in (
        "2 prompts, 2 groups, 8 rollouts",
        "passes",
        "at its peak",
        "sampling of a step",
        "checkpoint",
    ):
        assert word in text
    found = json.loads(printed(["train", "--plan", "--json", *TINY], capsys))
    assert set(found) == {"work", "memory", "time", "disk", "free"}
    assert found["work"]["rows"] == 8
    assert found["memory"]["weights"] > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--seconds", "0"], "--seconds: wanted a number above 0, got 0"),
        (["--seconds"], "--seconds: wanted a number above 0, got nothing"),
        (["--response-tokens=many"], "--response-tokens: wanted a number above 0, got many"),
        (["--run.steps", "-1"], "run.steps: wanted at least 0, got -1"),
        (
            ["--rollout.max-tokens", "100000", *TINY],
            "rollout.max_tokens: wanted at most",
        ),
    ],
)
def test_what_a_run_refuses_a_plan_refuses(words: list[str], said: str, capsys: pytest.CaptureFixture[str]):
    status, out, err = called(["plan", *words], capsys)
    assert (status, out) == (2, "")
    assert said in err.splitlines()[-1]


def test_help(capsys: pytest.CaptureFixture[str]):
    assert "--response-tokens N" in printed(["plan", "--help"], capsys)
