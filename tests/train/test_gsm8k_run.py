"""Real input end to end: GSM8K's own files, guidance from the worked solutions, evaluation, a resumed run.

The model is far too small to learn it; what is shown is that the pipeline carries real text.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from g2rpo_fast.cli import main
from g2rpo_fast.data import DataConfig
from g2rpo_fast.data.rows import read_problems
from g2rpo_fast.metrics import read_metrics
from g2rpo_fast.rewards import RewardConfig
from g2rpo_fast.rewards.loading import load_rewards
from g2rpo_fast.rewards.math_answer import MathVerify
from g2rpo_fast.rewards.text import ExactMatch
from real_data import DATA

TRAIN, TEST = DATA / "gsm8k_train.jsonl", DATA / "gsm8k_test.jsonl"


@pytest.fixture(autouse=True)
def _data_is_here():
    if not TRAIN.exists():
        assert os.environ.get("CI") != "true", f"{TRAIN} is missing"
        pytest.skip(f"{TRAIN} is not here")


def _train(run_dir: Path, steps: int) -> list[dict]:
    arguments = [
        "train", "gsm8k", "--data.path", str(TRAIN),
        "--data.eval-path", str(TEST), "--data.eval-rows", "6", "--data.max-prompt-tokens", "200",
        "--run.dir", str(run_dir), "--run.steps", str(steps), "--run.prompts-per-step", "3",
        "--rollout.group-size", "4", "--rollout.max-tokens", "96",
        "--guidance.length-init", "40", "--guidance.length-max", "64", "--guidance.share", "0.5",
        "--reward.functions", "math", "format", "--reward.weights", "format", "0.1",
        "--reward.format-pattern", ".*[a-m]", "--optim.lr", "1e-3",
        "--evaluate.profile-prompts", "2", "--evaluate.profile-samples", "2", "--run.threads", "1",
    ]  # fmt: skip
    assert main(arguments) == 0
    return read_metrics(run_dir / "metrics.jsonl")


@pytest.mark.parametrize("path", [TRAIN, TEST])
def test_gsm8k_solutions_are_right_under_every_reward(path):
    problems = read_problems(str(path), DataConfig(format="gsm8k"), key="", limit=0, trace_required=True)
    solutions = [json.loads(line)["answer"] for line in path.read_text().splitlines()]
    for function in load_rewards(RewardConfig(functions=("math", "exact_match"))).functions:
        wrong = [
            p.line
            for p, text in zip(problems, solutions, strict=True)
            if function(text, p.answer, None) != 1.0
        ]
        assert wrong == []
        assert isinstance(function, MathVerify | ExactMatch)
        assert [p.line for p in problems if function.check_reference(p.answer, p.row)] == []
    assert len(problems) > 1000


@pytest.mark.slow
def test_gsm8k_trains_evaluates_checkpoints_and_resumes(tmp_path, capsys):
    records = _train(tmp_path / "run", steps=2)
    assert [r["step"] for r in records] == [0, 1, 2]
    assert "over data.max_prompt_tokens left out" in capsys.readouterr().out
    resumed = _train(tmp_path / "run", steps=4)
    assert [r["step"] for r in resumed] == [0, 1, 2, 3, 4]
    assert resumed[:3] == records
    for record in resumed[1:]:
        assert 0 < record["rollout/guidance_tokens"] <= 3 * 2 * 40
        assert record["rollout/guided/share"] == 0.5
        assert np.isfinite(record["loss"])
        assert {"reward/math", "reward/format"} <= set(record)
    assert resumed[-1]["eval/length"] > 0
    assert any(record["optim/grad_norm"] > 0 for record in resumed[1:])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    question = json.loads(TRAIN.read_text().splitlines()[0])["question"]
    assert tokenizer.decode(tokenizer.encode(question)) == question
