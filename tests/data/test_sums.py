"""Generated sums: rows whose traces are right, and settings that are refused before anything is made."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from g2rpo_fast.cli import main
from g2rpo_fast.data import DataConfig
from g2rpo_fast.data.sums import make_sums
from g2rpo_fast.rewards import RewardConfig
from g2rpo_fast.rewards.loading import load_rewards
from g2rpo_fast.rewards.scoring import score
from g2rpo_fast.train import train
from runs import quiet, tiny_config
from scored import row_of


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def sums(settings: str = "", **values: Any) -> DataConfig:
    return DataConfig(path=f"generated:sums{settings}", **{"eval_rows": 10, **values})


def test_each_step_of_each_trace_is_right_and_the_last_is_the_answer(tmp_path: Path) -> None:
    training, held_out = make_sums(tmp_path, sums("?size=50&terms=4&low=5&high=30"), seed=3)
    for row in (*rows_of(training), *rows_of(held_out)):
        numbers = [int(number) for number in re.findall(r"\d+", row["prompt"])]
        assert row["prompt"] == f"What is {' + '.join(map(str, numbers))}?"
        assert len(numbers) == 4
        assert all(5 <= number <= 30 for number in numbers)
        steps = [re.fullmatch(r"(\d+) \+ (\d+) = (\d+)", line) for line in row["trace"].split("\n")]
        found = [tuple(map(int, step.groups())) for step in steps if step]
        assert len(found) == len(steps) == 3
        assert all(left + right == total for left, right, total in found)
        assert [left for left, _, _ in found] == [numbers[0], *(total for _, _, total in found[:-1])]
        assert [right for _, right, _ in found] == numbers[1:]
        assert row["answer"] == str(found[-1][2]) == str(sum(numbers))


def test_a_seed_fixes_the_files_and_no_sum_comes_twice(tmp_path: Path) -> None:
    named = (("a", 1), ("b", 1), ("c", 2))
    made = [make_sums(tmp_path / name, sums("?size=40"), seed=seed) for name, seed in named]
    assert [file.read_text() for file in made[0]] == [file.read_text() for file in made[1]]
    assert made[0][0].read_text() != made[2][0].read_text()
    training, held_out = map(rows_of, made[0])
    assert (len(training), len(held_out)) == (40, 10)
    assert len({row["prompt"] for row in (*training, *held_out)}) == 50


def test_examples_are_solved_turns_before_each_problem(tmp_path: Path) -> None:
    config = sums("?size=20&examples=2", prompt_column="turns", trace_column=None, answer_column="total")
    training, held_out = map(rows_of, make_sums(tmp_path, config, seed=0))
    shown = training[0]["turns"][:-1]
    assert [turn["role"] for turn in shown] == ["user", "assistant"] * 2
    for asked, solved in zip(shown[::2], shown[1::2]):
        total = sum(map(int, re.findall(r"\d+", asked["content"])))
        assert solved["content"].endswith(f" = {total}\n#### {total}")
    questions = {row["turns"][-1]["content"] for row in (*training, *held_out)}
    assert len(questions) == 30
    assert not questions & {turn["content"] for turn in shown}
    for row in (*training, *held_out):
        assert row.keys() == {"turns", "total"}
        assert row["turns"][:-1] == shown


def test_the_reward_math_pays_a_whole_trace(tmp_path: Path) -> None:
    training, _ = make_sums(tmp_path, sums("?size=1"), seed=0)
    (row,) = rows_of(training)
    texts = [f"{row['trace']}\n#### {row['answer']}", f"#### {row['answer']}", f"{row['trace']}\n#### 1"]
    rollouts = [replace(row_of(0, member, [1]), text=text) for member, text in enumerate(texts)]
    rollouts = [replace(r, prompt=replace(r.prompt, answer=row["answer"])) for r in rollouts]
    rewards = load_rewards(RewardConfig(functions=("math",)))
    assert score(rewards, rollouts).total_R.tolist() == [1.0, 1.0, 0.0]
    rewards.close()


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("generated:products", "data.path: wanted generated:sums, the only task of that kind, got"),
        ("generated:sums?terms", "data.path: wanted settings as name=value&name=value, got 'terms'"),
        ("generated:sums?digits=3", "data.path: wanted settings of terms, low, high, examples, size, got"),
        ("generated:sums?terms=1", "data.path: wanted a whole number of at least 2 as terms, got 1"),
        ("generated:sums?terms=two", "data.path: wanted a whole number of at least 2 as terms, got 'two'"),
        ("generated:sums?low=9&high=3", "data.path: wanted low up to high = 3, got 9"),
        ("generated:sums?size=0", "data.path: wanted a whole number of rows above 0 as size, got 0"),
        ("generated:sums?high=19", "data.path: wanted at most 500 of 1000 different sums, got 2048 rows"),
    ],
)
def test_settings_that_do_not_fit_are_one_line_before_anything_is_made(
    path: str, problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    words = ["train", "--model.path", "untrained", "--data.path", path, "--run.dir", str(run)]
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"g2rpo-fast: {problem}")
    assert not run.exists()


def test_formats_that_do_not_fit_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^data\.format: wanted columns with generated:sums, got 'gsm8k'"):
        make_sums(tmp_path, sums(format="gsm8k"), seed=0)
    with pytest.raises(ValueError, match=r"^data\.chat: wanted a chat template for examples in data\.path"):
        make_sums(tmp_path, sums("?examples=1", chat=False), seed=0)


def test_a_run_trains_with_guidance_on_sums(tmp_path: Path) -> None:
    config = tiny_config(
        tmp_path / "run",
        run={"steps": 1},
        model={"path": "untrained"},
        data={"path": "generated:sums?size=40", "eval_rows": 8},
    )
    result = train(config, show=quiet)
    assert (tmp_path / "run" / "generated" / "eval.jsonl").is_file()
    record = json.loads(result.metrics_path.read_text().splitlines()[-1])
    assert record["eval/rows"] == 8.0
    assert "rollout/guided/accuracy" in record
