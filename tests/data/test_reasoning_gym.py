"""Tasks of reasoning-gym as data, and their scorers as a reward; with the real package."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from g2rpo_fast.cli import main
from g2rpo_fast.data import DataConfig
from g2rpo_fast.data.reasoning_gym import make_task
from g2rpo_fast.rewards import RewardConfig
from g2rpo_fast.rewards.loading import load_rewards
from g2rpo_fast.rewards.scoring import score
from g2rpo_fast.train import train
from runs import quiet, tiny_config
from scored import row_of


def rows_of(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def task(path: str, **values: object) -> DataConfig:
    return DataConfig(path=path, **{"eval_rows": 10, **values})  # type: ignore[arg-type]


def test_without_the_package_a_task_is_refused_with_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    if find_spec("reasoning_gym") is not None:
        pytest.skip("reasoning-gym is installed")
    assert main(["train", "--model.path", "untrained", "--data.path", "reasoning_gym:chain_sum"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "g2rpo-fast: data.path: wanted a file, or the package reasoning-gym for reasoning_gym:chain_sum "
        '(pip install "g2rpo-fast[reasoning-gym]"), got neither'
    )
    with pytest.raises(ValueError, match=r"^reward\.functions: wanted the package of reasoning_gym"):
        load_rewards(RewardConfig(functions=("reasoning_gym",)))


def test_a_seed_fixes_the_files_and_held_out_questions_are_apart(tmp_path: Path) -> None:
    pytest.importorskip("reasoning_gym")
    config = task("reasoning_gym:chain_sum?size=30&max_terms=2&max_digits=1", prompt_column="question")
    files = [make_task(tmp_path / name, config, seed=seed) for name, seed in [("a", 1), ("b", 1), ("c", 2)]]
    training, held_out = (rows_of(file) for file in files[0])
    assert [file.read_text() for file in files[0]] == [file.read_text() for file in files[1]]
    assert files[0][0].read_text() != files[2][0].read_text()
    questions = [row["question"] for row in (*training, *held_out)]
    assert (len(training), len(held_out), len(set(questions))) == (30, 10, 40)
    assert all(str(question).count("+") + str(question).count("-") == 1 for question in questions)


def test_what_the_package_does_not_have_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("reasoning_gym")
    for path, problem in {
        "reasoning_gym:chain_som": "got Dataset 'chain_som' not registered",
        "reasoning_gym:chain_sum?terms=2": "unexpected keyword argument 'terms'",
        "reasoning_gym:chain_sum?min_terms=0": "min_terms must be positive",
        "reasoning_gym:chain_sum?size=0": "a whole number of rows above 0 as size, got 0",
        "reasoning_gym:chain_sum?size=500&max_terms=2&max_digits=1": r"got \d+ different ones of chain_sum",
    }.items():
        with pytest.raises(ValueError, match=rf"^data\.path: wanted .*{problem}"):
            make_task(tmp_path, task(path), seed=0)


def test_the_tasks_own_scorer_pays(tmp_path: Path) -> None:
    pytest.importorskip("reasoning_gym")
    train_file, _ = make_task(tmp_path, task("reasoning_gym:chain_sum?size=3"), seed=0)
    row = rows_of(train_file)[0]
    answer = str(row["answer"])
    texts = [
        f"so <answer>{answer}.00</answer>",
        answer,
        f"\\boxed{{{answer}}}",
        f"{answer}{answer}",
        "none",
        "",
    ]
    rollouts = [replace(row_of(0, member, [1]), text=text) for member, text in enumerate(texts)]
    rollouts = [replace(r, prompt=replace(r.prompt, row=row)) for r in rollouts]
    rewards = load_rewards(RewardConfig(functions=("reasoning_gym",), success=0.99))
    scored = score(rewards, [*rollouts, replace(rollouts[0], finish_reason="length")])
    assert scored.total_R.tolist() == [1.0, 1.0, 1.0, 0.5, 0.0, 0.0, 0.0]
    assert scored.accuracy_R.tolist() == [1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]


def test_a_run_trains_on_a_task(tmp_path: Path) -> None:
    pytest.importorskip("reasoning_gym")
    config = tiny_config(
        tmp_path / "run",
        run={"steps": 1},
        model={"path": "untrained"},
        data={"path": "reasoning_gym:chain_sum?size=40", "eval_rows": 8},
        guidance={"enabled": False},
        reward={"functions": ["reasoning_gym", "runs:wobble"]},
    )
    result = train(config, show=quiet)
    assert (tmp_path / "run" / "reasoning_gym" / "eval.jsonl").is_file()
    record = json.loads(result.metrics_path.read_text().splitlines()[-1])
    assert record["eval/rows"] == 8.0
