"""Every metric that real runs write is explained, and every explanation is of one that can occur."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import g2rpo_fast
from g2rpo_fast import console
from g2rpo_fast.cli import main
from g2rpo_fast.config import config_from_dict, plain
from g2rpo_fast.embedded import prepare
from g2rpo_fast.methods import load_methods
from g2rpo_fast.metric_names import COLUMNS, METRICS, Metric, metric_of
from g2rpo_fast.metrics import read_metrics
from g2rpo_fast.rewards.loading import COUNTS
from g2rpo_fast.train import train
from model_runs import made_of
from runs import quiet, tiny_config

ONE_STEP = {"run": {"steps": 1}, "evaluate": {"every": 1, "profile_prompts": 0}, "samples": {"every": 0}}
MOVING: dict[str, Any] = {
    "objective": {"importance": "token_truncate"},
    "rounds": [{"use": "horizon"}],
    "shaping": [{"use": "length_budget"}],
    "credit": [{"use": "rank"}],
    "weights": [{"use": "learned_length"}],
}
"""Pieces of several methods, each with a number of its own."""
RUNS: list[dict[str, Any]] = [
    {**MOVING, "token_credit": [{"use": "hotter"}]},
    {
        "terms": [{"use": "clip"}, {"use": "kl_controlled"}],
        "objective": {"importance": "token_truncate"},
        "tree": {"sharing": "off"},
    },
    {"model": {"router_aux": 0.01}, "rollout": {"record_routing": True}},
]


@pytest.fixture(scope="module")
def occurring(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names in the records of three runs of a step each, the last of a mixture of experts."""
    directory = tmp_path_factory.mktemp("task")
    embedded = tiny_config(directory, embedded={"warm_start_steps": 1}).embedded
    made = prepare(directory, embedded, seed=0, report=quiet)
    model = {"path": str(made.model_dir)}
    paths = {"path": str(made.train_path), "eval_path": str(made.eval_path)}
    experts = made_of("qwen3_moe", directory / "experts")["model"]
    names: set[str] = set()
    for number, pieces in enumerate(RUNS):
        of_run = experts if "model" in pieces else model
        values = plain(tiny_config(directory / str(number), model=of_run, data=paths, **ONE_STEP))
        for name, given in pieces.items():
            values[name] = given if isinstance(given, list) else {**values[name], **given}
        for record in read_metrics(train(config_from_dict(values), show=quiet).metrics_path):
            names |= record.keys()
    return names


def of_the_engine() -> set[str]:
    """What the vllm engine adds to a record; tests/with_vllm holds its runs to the table too."""
    source = Path(g2rpo_fast.__file__).parent / "rollout" / "vllm" / "engine.py"
    return set(re.findall(r'"(engine/\w+)":', source.read_text()))


def test_every_metric_that_occurs_is_explained(occurring: set[str]) -> None:
    assert len(occurring) > 60
    assert {name for name in occurring | of_the_engine() if metric_of(name) is None} == set()


def test_every_explained_metric_can_occur(occurring: set[str]) -> None:
    seen = occurring | of_the_engine() | {f"reward/{name}" for name in COUNTS}
    each = [Metric(name, *metric[1:]) for metric in METRICS for name in metric.names]
    assert [metric.name for metric in each if not any(map(metric.explains, seen))] == []
    assert len({metric.name for metric in each}) == len(each)


def test_a_name_by_itself_comes_before_a_pattern() -> None:
    channel, shaped = metric_of("reward/runs:wobble"), metric_of("reward/shaped")
    assert channel is not None
    assert shaped is not None
    assert (channel.name, shaped.name) == ("reward/CHANNEL", "reward/shaped")
    assert metric_of("update/nothing") is None
    assert metric_of("rollout/guided/rows") is None


def test_what_a_method_is_watched_by_is_explained() -> None:
    watched = {method.watch for method in load_methods().values()} - {""}
    assert len(watched) > 10
    assert {name for name in watched if metric_of(name) is None} == set()


def test_columns_are_those_of_the_terminal() -> None:
    headings = re.split(r"\s{2,}", console._HEADER.replace("|", "  ").strip())
    single = " ".join(headings).split()
    assert single == " ".join(column.heading for column in COLUMNS).split()
    assert {name for column in COLUMNS for name in column.reads if metric_of(name) is None} == set()


def test_the_command_explains_all_or_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["metrics"]) == 0
    everything = capsys.readouterr().out
    assert all(metric.name in everything and metric.what.split()[0] in everything for metric in METRICS)
    assert all(column.heading in everything for column in COLUMNS)
    assert max(map(len, everything.splitlines())) <= 110
    assert main(["metrics", "rollout/guided/nll"]) == 0
    one = capsys.readouterr().out
    assert one.startswith("rollout/{,guided/,unguided/}nll [nats]\n    -log p of sampled tokens")
    assert main(["metrics", "mismatch/"]) == 0
    assert capsys.readouterr().out.count("mismatch/") == 7
    assert main(["metrics", "alone"]) == 0
    assert "rollout/unguided/accuracy" in capsys.readouterr().out
    assert main(["metrics", "update/cliped"]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "got 'update/cliped'; the nearest are update/clipped" in line
