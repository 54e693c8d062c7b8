"""Whole runs by methods that each use another joint of the frame: a store, a second round, tied losses."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from g2rpo_fast.assemble import assemble
from g2rpo_fast.cli import _status_of
from g2rpo_fast.config import Config, config_from_dict, plain
from g2rpo_fast.config.read import read_values, with_method
from g2rpo_fast.embedded import prepare
from g2rpo_fast.gather import sample, score
from g2rpo_fast.methods import load_method, load_methods
from g2rpo_fast.metric_names import metric_of
from g2rpo_fast.metrics import read_metrics
from g2rpo_fast.own import PieceError
from g2rpo_fast.rounds import settled
from g2rpo_fast.safekeeping import FAULT
from g2rpo_fast.train import train
from runs import needs_of, tiny_config, without_times

HINTS = {"data": needs_of("guide_grpo")["data"]}
RARE = {"reward": {"functions": ["runs:rare"]}}
AHEAD = {"run": {"ahead": 1}, "objective": {"importance": "token_truncate"}}
FEW = {
    "model": {"path": None},
    "data": {"path": None, "eval_path": None},
    "embedded": {"train_rows": 8},
    "selection": {"known": 4},
}
"""A task of its own, of so few prompts that each is met again, and known then."""
RUNNABLE = [key for key, method in load_methods().items() if method.runnable and method.settings]


def config_of(directory: Path, method: str | None, *layers: dict[str, dict[str, Any]]) -> Config:
    """The tiny embedded run by a method, with layers of sections over it."""
    values = plain(tiny_config(directory, evaluate={"every": 0, "profile_prompts": 0}))
    if method is not None:
        values, _ = with_method(values, load_method(method))
    for layer in layers:
        for name, section in layer.items():
            values[name] = {**values[name], **section}
    return config_from_dict(values)


def run(config: Config) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    result = train(config, show=lambda line: None)
    return without_times(read_metrics(result.metrics_path)), load_file(result.model_dir / "model.safetensors")


Task = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    """The embedded task, made once, as sections of a run of one's own data."""
    directory = tmp_path_factory.mktemp("task")
    made = prepare(directory, tiny_config(directory).embedded, seed=0, report=lambda line: None)
    return {
        "model": {"path": str(made.model_dir)},
        "data": {"path": str(made.train_path), "eval_path": str(made.eval_path)},
    }


@pytest.mark.parametrize("method", RUNNABLE)
def test_a_method_runs(method: str, task: Task, tmp_path: Path) -> None:
    needs = needs_of(method, "runs:rare" if method in ("guide_grpo", "sgpo") else "runs:wobble")
    config = config_of(tmp_path, method, {"run": {"steps": 2}}, task, needs)
    records, weights = run(config)
    assert [record["step"] for record in records] == [0, 1, 2]
    assert {name for record in records for name in record if metric_of(name) is None} == set()
    assert max(record["optim/grad_norm"] for record in records[1:]) > 0
    assert all(bool(weight.isfinite().all()) for weight in weights.values())
    if not any(piece.repeats for piece in config.rounds):
        assert [record["rollout/rows"] for record in records[1:]] == [24.0, 24.0]  # 4 prompts x 6
    guided = records[1]["rollout/guidance_tokens"] > 0
    assert guided == ("guidance" in load_method(method).settings)


CONTINUED = {
    "store": ("vade", [RARE]),
    "store, ahead": ("vade", [RARE, AHEAD]),
    "rounds": ("guide_grpo", [HINTS, RARE]),
    "rounds, ahead": ("guide_grpo", [HINTS, RARE, AHEAD]),
    "resampling": ("dapo", [RARE]),
    "memory": ("g2rpo_a_official", [RARE]),
    "memory of credit": ("air_quality_grpo", []),
    "moving setting": ("dcpo", [RARE]),
    "tracker, ahead": ("spo_single_stream", [AHEAD]),
    "sizes": ("knapsack_rl", [RARE, FEW]),
    "moving weights": ("lambda_grpo", [AHEAD]),
    "tied": ("disco", [RARE, {"optim": {"minibatches": 2}}]),
}


@pytest.mark.parametrize("name", CONTINUED)
def test_a_continued_run_is_the_uninterrupted_one(name: str, task: Task, tmp_path: Path) -> None:
    """From the checkpoint in the middle: metrics and weights bit for bit."""
    method, layers = CONTINUED[name]
    kept = {"checkpoint": {"every": 2, "keep": 9}}
    whole, weights = run(config_of(tmp_path / "whole", method, task, *layers, kept))
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "model")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "step_00000004")
    again, after = run(config_of(tmp_path / "again", method, task, *layers, kept))
    assert again == whole
    assert len(again) == 5
    assert all(torch.equal(after[key], weights[key]) for key in weights)


def test_vade_keeps_what_it_learns_and_chooses_by_it(task: Task, tmp_path: Path) -> None:
    config = config_of(tmp_path, "vade", task, RARE)
    run(config)
    parts = assemble(config, lambda line: None)
    alpha, beta = parts.state.store.columns["alpha"], parts.state.store.columns["beta"]
    seen = alpha + beta > 1
    assert 4 <= seen.sum() <= 16  # four prompts in each of four steps
    assert alpha.max() > 0.5
    groups = dict.fromkeys(ask.prompt.id for ask in sample(parts, parts.state).asks)
    assert len(groups) == 4
    parts.close()


def test_group_sizes_follow_what_was_learned_and_spend_the_budget(tmp_path: Path) -> None:
    config = config_of(tmp_path, "v0_allocation", RARE, FEW)
    records, _ = run(config)
    assert [record["rollout/rows"] for record in records[1:]] == [24.0] * 4
    parts = assemble(config, lambda line: None)
    sizes = Counter(ask.prompt.id for ask in sample(parts, parts.state).asks)
    assert sum(sizes.values()) == 24
    assert 2 <= min(sizes.values()) < 6 < max(sizes.values())
    parts.close()


def test_failed_groups_get_rows_from_a_hint_and_train_without_it(task: Task, tmp_path: Path) -> None:
    parts = assemble(config_of(tmp_path, "guide_grpo", task, HINTS, RARE), lambda line: None)
    batch = sample(parts, parts.state)
    scored, _ = score(parts, parts.state, batch)
    first = [r for r in scored.rollouts if r.round == 0]
    second = [r for r in scored.rollouts if r.round == 1]
    assert len(first) == 24
    failed = {
        r.prompt.id for r in first if not any(
            a for a, other in zip(scored.rewards.accuracy_R, scored.rollouts) if other.group == r.group
        )
    }  # fmt: skip
    assert failed
    assert {r.prompt.id for r in second} == failed
    assert len(second) == 6 * len(failed)
    for r in second:
        assert r.source == "off_policy"
        assert r.sampling_prompt_ids == r.prompt.hinted_ids[0]
        assert r.training_prompt_ids == r.prompt.token_ids
    assert {r.source for r in first} == {"on_policy"}
    kept = settled(parts.recipe.rounds, scored, parts.state.memory)
    assert 0 < len(kept.rollouts) < len(scored.rollouts)
    assert batch.rewards is not None  # nothing is scored twice
    parts.close()


def test_resampling_takes_the_next_prompts_of_the_data(task: Task, tmp_path: Path) -> None:
    parts = assemble(config_of(tmp_path, "dapo", task, RARE), lambda line: None)
    first = sample(parts, parts.state)
    assert first.num_prompts > 4
    asked = list(dict.fromkeys(ask.prompt.id for ask in first.asks))
    assert len(asked) == first.num_prompts == 1 + max(ask.group for ask in first.asks)
    scored, _ = score(parts, parts.state, first)
    kept = settled(parts.recipe.rounds, scored, parts.state.memory)
    assert len(set(kept.group_R.tolist())) == 4
    following = sample(parts, replace(parts.state, step=1, cursor=first.num_prompts))
    assert not {ask.prompt.id for ask in following.asks} & set(asked)
    parts.close()


def test_a_step_that_settles_on_nothing_leaves_the_weights(task: Task, tmp_path: Path) -> None:
    never = {"reward": {"functions": ["exact_match"]}}
    begun, before = run(config_of(tmp_path / "none", "guide_grpo", task, HINTS, never, {"run": {"steps": 0}}))
    records, after = run(
        config_of(tmp_path / "some", "guide_grpo", task, HINTS, never, {"run": {"steps": 3}})
    )
    assert len(begun) == 1
    trained = [record["rollout/trained_rows"] for record in records[1:]]
    assert trained == [0.0, 0.0, 0.0]
    assert [record["rollout/rows"] for record in records[1:]] == [48.0] * 3
    assert [record["optim/bad_updates"] for record in records[1:]] == [0, 0, 0]
    assert all(torch.equal(after[key], before[key]) for key in before)


STEPS_AS_ITEMS = {
    "units": {"use": "items", "separator": ";", "most": 6},
    "token_credit": {"use": "ranks", "function": "g2rpo_fast.embedded.channels:right_steps", "length": 4},
}


def test_items_of_responses_have_ratios_and_credit_of_their_own(task: Task, tmp_path: Path) -> None:
    """Steps of a solution as the items; from the checkpoint in the middle the run goes on bit for bit."""
    values = plain(config_of(tmp_path / "a", "rank_grpo", task)) | STEPS_AS_ITEMS
    values["rollout"]["max_tokens"], values["optim"]["updates_per_batch"] = 40, 3
    values["optim"]["lr"] = 0.01
    records, weights = run(config_from_dict(values))
    assert max(record["update/clipped"] for record in records[1:]) > 0
    assert all(bool(weight.isfinite().all()) for weight in weights.values())
    shutil.rmtree(tmp_path / "a" / "model")
    shutil.rmtree(tmp_path / "a" / "checkpoints" / "step_00000004")
    again, after = run(config_from_dict(values))
    assert again == records
    assert all(torch.equal(after[key], weights[key]) for key in weights)
    parts = assemble(config_from_dict(values), lambda line: None)
    scored, _ = score(parts, parts.state, sample(parts, parts.state))
    cuts = parts.recipe.cut(scored).cuts
    assert cuts is not None
    assert max(made.unit_K.max() for made in cuts) > 0
    for rollout, made in zip(scored.rollouts, cuts, strict=True):
        assert ";".join(made.texts).rstrip(";") == rollout.text.rstrip(";")
    parts.close()


def test_hints_that_are_not_there_are_wanted_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.hint_columns: wanted columns with hints .*hint_on_failure"):
        config_of(tmp_path, "guide_grpo")
    values, _ = read_values("embedded", method="grpo")
    assert values["guidance"]["enabled"] is False


def gone_later(a_R: Any, scored: Any, store: Any) -> Any:
    return a_R if scored.clock.step < 2 else scored.nothing


def endless_later(logp_N: torch.Tensor, entropy_N: torch.Tensor, tokens: Any) -> torch.Tensor:
    """Finite where it is tried, and in a run's first micro-batch, of which it is told by its old policy."""
    return logp_N.sum() / (0 if len(logp_N) > 12 else 1)


@pytest.mark.parametrize(
    ("pieces", "told", "done"),
    [
        (
            {"credit": [gone_later]},
            r"credit\.own\.function: test_method_runs:gone_later: Attr",
            2,
        ),
        ({"terms": [endless_later]}, r"terms: loss: wanted a finite value, got -?inf", 0),
    ],
)
def test_a_function_that_fails_in_a_run_ends_it_in_a_line_and_loses_nothing(
    pieces: Any, told: str, done: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(tiny_config(tmp_path, evaluate={"every": 0}), **pieces)
    with pytest.raises(PieceError, match=f"^{told}") as caught:
        train(config, show=lambda line: None)
    assert _status_of(caught.value) == 1
    line = capsys.readouterr().err
    assert f"the state after step {done} is saved" in line
    assert FAULT not in line
