"""Reward functions with the signature of TRL's GRPOTrainer, and functions given from Python."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trl.rewards.other_rewards import get_repetition_penalty_reward

from g2rpo_fast.assemble import reference_checks
from g2rpo_fast.config import Config, load_config, plain
from g2rpo_fast.rewards import RewardConfig, RewardError
from g2rpo_fast.rewards.loading import load_rewards
from g2rpo_fast.rewards.scoring import score
from g2rpo_fast.shaping import Repetition
from g2rpo_fast.train import train
from g2rpo_fast.types import Rollout
from runs import quiet, tiny_config
from scored import row_of, scored_of

SEEN: list[dict[str, Any]] = []


def everything(completions: list[str], **kwargs: Any) -> list[float | None]:
    SEEN.append({"completions": completions, **kwargs})
    return [None if text == "none" else float(len(text)) for text in completions]


def named(prompts: list[str], completions: list[str], solution: list[str], log_extra: object = None) -> Any:
    assert log_extra is None
    return np.array([float(text in given) for text, given in zip(completions, solution)])


async def judge(completions: list[str], prompts: list[str], **kwargs: Any) -> list[float]:
    await asyncio.sleep(0.01)
    return [len(prompt) + len(text) for prompt, text in zip(prompts, completions)]


def logs(completions: list[str], log_metric: Callable[[str, float], None]) -> list[float]:
    return [0.0] * len(completions)


def positional(completions: list[str], other: list[str], /) -> list[float]:
    return [0.0] * len(completions)


def short(completions: list[str], **kwargs: Any) -> list[float]:
    return [1.0]


def rollouts_of(*texts: str, problem: Any = None, **row: Any) -> list[Rollout]:
    rows = [replace(row_of(0, member, [3, 4 + member]), text=text) for member, text in enumerate(texts)]
    return [replace(r, prompt=replace(r.prompt, problem=problem, row=row)) for r in rows]


def paid(function: Any, rollouts: list[Rollout], **values: Any) -> list[float]:
    rewards = load_rewards(RewardConfig(functions=(function,), **values))
    return score(rewards, rollouts).reward_RK[:, 0].tolist()


def test_a_function_is_called_as_grpo_trainer_calls_it() -> None:
    SEEN.clear()
    rows = rollouts_of("none", "ab", prompt="Q", solution="ab", level=3, completion="x")
    rewards = load_rewards(RewardConfig(functions=(everything,)))
    rewards.place.step, rewards.place.total_steps = 7, 9
    np.testing.assert_array_equal(score(rewards, rows).reward_RK[:, 0], [np.nan, 2.0])
    (call,) = SEEN
    state = call.pop("trainer_state")
    assert (state.global_step, state.max_steps) == (7, 9)
    assert call == {
        "prompts": ["q", "q"],
        "completions": ["none", "ab"],
        "completion_ids": [[3, 4], [3, 5]],
        "solution": ["ab", "ab"],
        "level": [3, 3],
    }


def test_a_conversation_comes_as_messages() -> None:
    def content(prompts: Any, completions: Any, **kwargs: Any) -> list[float]:
        assert prompts == [[{"role": "user", "content": "hello"}]] * 2
        return [float(completion[0]["content"] == "b") for completion in completions]

    rows = rollouts_of("a", "b", problem=[{"role": "user", "content": "hello"}])
    assert paid(content, rows) == [0.0, 1.0]


def test_a_function_is_given_what_it_names_and_async_ones_are_awaited() -> None:
    rows = rollouts_of("a", "bcd", solution="abc", other=1)
    assert paid(named, rows) == [1.0, 0.0]
    assert paid(judge, rows) == [2.0, 4.0]


def test_trls_own_functions_run_as_they_are() -> None:
    rows = [replace(row_of(0, m, ids), text="x") for m, ids in enumerate([[1, 2, 1, 2, 1, 2], [1, 2, 3]])]
    given = paid(get_repetition_penalty_reward(ngram_size=2), rows)
    np.testing.assert_allclose(given, [-3 / 5, 0.0], rtol=1e-12)


def test_repetition_by_hand_and_by_trl() -> None:
    """Of 1 2 1 2 1 2 the pairs are 12 21 12 21 12: two of five are distinct."""
    lines = [[1, 2, 1, 2, 1, 2], [1, 2, 3, 4], [5], [9, 9, 9, 9], [7, 7, 7, 1, 2]]
    scored = scored_of([[1.0]] * len(lines), [0] * len(lines))
    rows = [row_of(0, member, ids) for member, ids in enumerate(lines)]
    guided = replace(rows[-1], guidance_len=3)
    scored = replace(scored, rollouts=(*rows[:-1], guided))
    shaped = Repetition(n=2, weight=0.5)(scored)
    np.testing.assert_allclose(shaped.channel("repetition"), [-3 / 5, 0, 0, -2 / 3, 0], atol=1e-12)
    np.testing.assert_allclose(shaped.total_R, [0.7, 1, 1, 2 / 3, 1], atol=1e-12)
    theirs = get_repetition_penalty_reward(ngram_size=2)(completions=["x"] * 4, completion_ids=lines[:4])
    np.testing.assert_allclose(shaped.channel("repetition")[:4], theirs, atol=1e-12)


def test_a_missing_column_is_told_before_the_run() -> None:
    (check,) = reference_checks(load_rewards(RewardConfig(functions=(named,)))).values()
    assert check("72", {"solution": "x"}) is None
    assert check("72", {"prompt": "x"}) == "the row has no column 'solution', which the function takes"


@pytest.mark.parametrize("function", [logs, positional])
def test_what_cannot_be_called_by_keyword_is_refused_at_load(function: Any) -> None:
    with pytest.raises(ValueError, match=r"^reward\.functions: wanted a function of TRL's kind .* got .*"):
        load_rewards(RewardConfig(functions=(function,)))


def test_too_few_rewards_are_refused() -> None:
    with pytest.raises(RewardError, match="over all 2 rollouts: wanted 2 numbers, one for each, got 1"):
        paid(short, rollouts_of("a", "b"))


class Client:
    """What a user's object may hold: it bears neither copying nor pickling."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __call__(self, response: str, answer: str, rollout: Rollout) -> float:
        return len(response) % 3 / 2


def test_a_run_takes_functions_from_python_and_notes_their_names(tmp_path: Path) -> None:
    SEEN.clear()
    client = Client()
    functions = [everything, client]
    name = f"{__name__}:everything"
    weights = {name: 0.01}
    config = tiny_config(tmp_path / "run", run={"steps": 2}, evaluate={"every": 0, "profile_prompts": 0})
    config = replace(config, reward=RewardConfig(functions=tuple(functions), weights=weights))
    assert plain(config)["reward"]["functions"] == [name, f"{__name__}:Client"]
    result = train(config, show=quiet)
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert stored["reward"]["functions"] == [name, f"{__name__}:Client"]
    record = json.loads(result.metrics_path.read_text().splitlines()[-1])
    assert {f"reward/{name}", f"reward/{__name__}:Client"} <= set(record)
    assert [call["trainer_state"].global_step for call in SEEN] == [0, 1]
    assert {"prompts", "completion_ids", "answer", "trace"} <= set(SEEN[0])
    assert SEEN[0]["prompts"] == SEEN[0]["prompts"]


def test_a_section_of_plain_values_takes_functions_too() -> None:
    config = Config(reward={"functions": [named, "math"], "accuracy": "math"})  # type: ignore[arg-type]
    assert config.reward.channels == (f"{__name__}:named", "math")
    assert load_config("embedded").reward.channels == ("exact_match",)
    with pytest.raises(ValueError, match=r"^reward\.functions: wanted distinct names"):
        RewardConfig(functions=(named, named))
    with pytest.raises(ValueError, match=r"^reward\.functions\.1: wanted a text, got 3"):
        RewardConfig(functions=(named, 3))  # type: ignore[arg-type]
