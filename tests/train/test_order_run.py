"""A run of a mixture and a curriculum: what it visits, and that it goes on as if it had never stopped."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from g2rpo_fast import train
from g2rpo_fast.config import Config
from g2rpo_fast.metrics import read_metrics
from g2rpo_fast.rewards import RewardConfig
from g2rpo_fast.types import Rollout
from runs import quiet, tiny_config, without_times, wobble


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    lines, table = tmp_path / "hard.jsonl", tmp_path / "easy.csv"
    rows = [{"prompt": f"{n}", "answer": "1", "level": 9 - n % 3} for n in range(10, 15)]
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table.write_text("prompt,answer,level\n" + "".join(f"{n},1,{12 - n}\n" for n in range(1, 4)))
    return [str(lines), str(table)]


def config_of(directory: Path, paths: list[str], steps: int, **data: Any) -> Config:
    return tiny_config(
        directory,
        run={"steps": steps, "prompts_per_step": 4},
        model={"path": "untrained"},
        data={"path": paths, "trace_column": None, "weights": [1, 3], "order_column": "level", **data},
        guidance={"enabled": False},
        evaluate={"every": 0, "profile_prompts": 0},
        rollout={"group_size": 2, "max_tokens": 4},
        checkpoint={"every": 1},
        optim={"schedule": "constant"},
    )


def test_a_mixture_in_order_of_a_column_goes_on_where_it_stopped(paths: list[str], tmp_path: Path) -> None:
    asked: dict[str, list[str]] = {"whole": [], "parts": []}

    def run(name: str, steps: int, **data: Any) -> list[dict[str, Any]]:
        def reward(response: str, answer: str, rollout: Rollout) -> float:
            asked[name].append(rollout.prompt.id)
            return wobble(response, answer, rollout)

        config = replace(
            config_of(tmp_path / name, paths, steps, **data), reward=RewardConfig(functions=(reward,))
        )
        return without_times(list(read_metrics(train(config, show=quiet).metrics_path)))

    run("parts", 1)
    records = run("parts", 4)
    assert len(records) == 5
    assert records == run("whole", 4)
    assert asked["parts"] == asked["whole"]
    visited = asked["whole"][::2]  # two rollouts each
    assert Counter(id_.split(":")[1] for id_ in visited) == {"1": 4, "2": 12}
    easy = [id_ for id_ in visited if id_.startswith("train:2:")]
    assert easy == ["train:2:4", "train:2:3", "train:2:2"] * 4  # levels 9, 10, 11
    hard = [id_ for id_ in visited if id_.startswith("train:1:")]
    assert sorted(hard[:2]) == ["train:1:2", "train:1:5"]  # level 7, in the seeded order
    for changed in ({"weights": [1, 1]}, {"order_column": None}):
        with pytest.raises(ValueError, match=r"run\.dir: .* but the prompts and their order are the run's"):
            run("parts", 5, **changed)


def test_rows_without_a_level_are_refused_by_row(paths: list[str], tmp_path: Path) -> None:
    with Path(paths[0]).open("a") as file:
        file.write('{"prompt": "x", "answer": "1"}\n{"prompt": "x", "answer": "1", "level": null}\n')
    with pytest.raises(ValueError) as caught:
        train(config_of(tmp_path / "run", paths, 1), show=quiet)
    first, *lines = str(caught.value).splitlines()
    assert first == f"{paths[0]}: 2 rows without an order"
    assert lines[0] == "  line 6: no column 'level'; the row has 'prompt', 'answer' (data.order_column)"
    assert lines[1] == "  line 7: column 'level': wanted a number or a text to order by, got None"
    assert not (tmp_path / "run").exists()
