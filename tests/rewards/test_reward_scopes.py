"""Reward functions of whole groups and of all rollouts: votes, pairs, ranks."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from g2rpo_fast.rewards import RewardConfig, RewardError
from g2rpo_fast.rewards.loading import RewardSet, load_rewards
from g2rpo_fast.rewards.scoring import score
from g2rpo_fast.train import train
from g2rpo_fast.types import Rollout
from own_modules import own_module
from runs import tiny_config
from scored import row_of

MODULE = "scopes_of_a_user"
SOURCE = """
import asyncio, signal
from collections import Counter
import numpy as np, torch

CALLS = []
def noted(name, responses, rollouts):
    CALLS.append((name, [(r.prompt.id, r.member) for r in rollouts]))
    assert responses == [r.text for r in rollouts]

def length(response, answer, rollout):
    CALLS.append(("length", [(rollout.prompt.id, rollout.member)]))
    return float(len(response))

def majority(responses, answer, rollouts):
    noted("majority", responses, rollouts)
    assert answer == rollouts[0].prompt.answer
    (most, _), *_ = Counter(responses).most_common()
    return [float(response == most) for response in responses]
majority.scope = "group"

async def pairs(responses, answer, rollouts):
    noted("pairs", responses, rollouts)
    await asyncio.sleep(0.01)
    won = [sum((len(a) > len(b)) + (len(a) == len(b)) / 2 for b in responses) - 0.5 for a in responses]
    return np.array(won) / (len(responses) - 1)
pairs.scope = "group"

def rank(responses, answers, rollouts):
    noted("rank", responses, rollouts)
    assert answers == [r.prompt.answer for r in rollouts]
    return torch.tensor([len(r) for r in responses]).argsort(stable=True).argsort()
rank.scope = "batch"

RETURNED = {"list": [1, None, True], "tuple": (0.5, 1, 2), "array": np.arange(3), "tensor": torch.ones(3),
    "short": [1.0], "long": [1.0] * 4, "text": "abc", "number": 1.0, "none": None, "dict": {0: 1.0},
    "table": np.ones((3, 1)), "cloud": torch.ones(3, 1), "set": {1.0, 2.0, 3.0},
    "nan": [0.0, float("nan"), 1.0], "word": [0.0, 1.0, "x"]}
def returned(responses, answer, rollouts): return RETURNED[responses[0]]
async def later(responses, answer, rollouts):
    await asyncio.sleep(0.01)
    return RETURNED[responses[0]]
def everywhere(responses, answers, rollouts): return RETURNED[responses[0]]
returned.scope = later.scope = "group"
everywhere.scope = "batch"

def loops(responses, answer, rollouts):
    while "loop" in responses: pass
    return [1.0] * len(responses)
async def sleeps(responses, answer, rollouts):
    await asyncio.sleep(60 if "loop" in responses else 0.01)
    return [1.0] * len(responses)
def writes(responses, answer, rollouts): rollouts[-1].loss_mask[:] = False
def upsets(responses, answer, rollouts):
    torch.set_grad_enabled(False); signal.signal(signal.SIGINT, signal.SIG_IGN)
    return [1.0 / (response == "fine") for response in responses]
loops.scope = sleeps.scope = writes.scope = upsets.scope = "group"

def nowhere(responses, answer, rollouts): return [1.0]
nowhere.scope = "prompt"
def two(responses, rollouts): return [1.0]
two.scope = "group"
def completions(completions, answers, prompts): return [1.0] * len(completions)
completions.scope = "batch"
"""


@pytest.fixture(autouse=True)
def _module_of_a_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with own_module(MODULE, SOURCE, tmp_path, monkeypatch):
        yield


def user() -> Any:
    module = sys.modules[MODULE]
    assert isinstance(module, ModuleType)
    return module


def rewards_of(*names: str, **values: Any) -> RewardSet:
    return load_rewards(RewardConfig(functions=tuple(f"{MODULE}:{name}" for name in names), **values))


def rollouts_of(*texts: str, groups: tuple[int, ...] = ()) -> list[Rollout]:
    """Of one group, or of `groups`; each group has an answer of its own."""
    rows = []
    for member, (text, group) in enumerate(zip(texts, groups or [0] * len(texts), strict=True)):
        row = row_of(group, member, [3, 4])
        rows.append(replace(row, text=text, prompt=replace(row.prompt, answer=f"answer {group}")))
    return rows


def test_a_vote_and_pairs_by_hand() -> None:
    votes = score(rewards_of("majority"), rollouts_of("a", "a", "b"))
    assert votes.total_R.tolist() == [1.0, 1.0, 0.0]
    assert votes.accuracy_R.tolist() == [1.0, 1.0, 0.0]
    won = score(rewards_of("pairs"), rollouts_of("xx", "x", "xxx"))
    assert won.total_R.tolist() == [0.5, 0.0, 1.0]
    assert score(rewards_of("pairs"), rollouts_of("a", "b", "c")).total_R.tolist() == [0.5] * 3


GROUPS = (1, 0, 1, 1, 0, 0)
TEXTS = ("yes", "no", "no!", "yes", "no", "yes")


def test_each_channel_is_called_about_its_scope() -> None:
    rewards = rewards_of("rank", "majority", "length", "pairs", weights={f"{MODULE}:pairs": 2.0})
    scored = score(rewards, rollouts_of(*TEXTS, groups=GROUPS))
    np.testing.assert_array_equal(
        scored.reward_RK,
        [
            [2.0, 1.0, 3.0, 0.5],
            [0.0, 1.0, 2.0, 0.25],
            [3.0, 0.0, 3.0, 0.5],
            [4.0, 1.0, 3.0, 0.5],
            [1.0, 1.0, 2.0, 0.25],
            [5.0, 0.0, 3.0, 1.0],
        ],
    )
    assert scored.total_R[0] == 2.0 + 1.0 + 3.0 + 2 * 0.5
    calls = [(name, [member for _, member in rows]) for name, rows in user().CALLS]
    assert calls[:6] == [("length", [member]) for member in range(6)]
    grouped = [(name, rows) for rows in ([0, 2, 3], [1, 4, 5]) for name in ("majority", "pairs")]
    assert sorted(calls[6:]) == sorted([*grouped, ("rank", [*range(6)])])


def test_later_rounds_call_what_their_rows_change() -> None:
    """Two groups, then one more row of group 1 and a new group: group 0 is left alone."""
    rewards = rewards_of("rank", "majority", "length", "pairs")
    rollouts = rollouts_of(*TEXTS, "yes", "no", "no", groups=(*GROUPS, 1, 2, 2))
    first = score(rewards, rollouts[:6])
    user().CALLS.clear()
    both = score(rewards, rollouts, first)
    calls = [(name, [member for _, member in rows]) for name, rows in user().CALLS]
    assert sorted(calls) == sorted(
        [("length", [6]), ("length", [7]), ("length", [8]), ("rank", [*range(9)])]
        + [(name, rows) for name in ("majority", "pairs") for rows in ([0, 2, 3, 6], [7, 8])]
    )
    at_once = score(rewards, rollouts)
    np.testing.assert_array_equal(both.reward_RK, at_once.reward_RK)
    np.testing.assert_array_equal(both.total_R, at_once.total_R)
    assert not np.array_equal(both.total_R[:6], first.total_R)
    assert len(score(rewards, []).total_R) == 0


@pytest.mark.parametrize("function", ["returned", "later", "everywhere"])
@pytest.mark.parametrize(
    ("form", "want"),
    [
        ("list", [1.0, np.nan, 1.0]),
        ("tuple", [0.5, 1.0, 2.0]),
        ("array", [0.0, 1.0, 2.0]),
        ("tensor", [1.0, 1.0, 1.0]),
    ],
)
def test_numbers_come_in_any_sequence(function: str, form: str, want: list[float]) -> None:
    scored = score(rewards_of(function), rollouts_of(form, "b", "c"))
    np.testing.assert_array_equal(scored.reward_RK[:, 0], want)


@pytest.mark.parametrize("function", ["returned", "later", "everywhere"])
@pytest.mark.parametrize(
    ("form", "problem"),
    [
        ("short", "member 0: {about}: wanted 3 numbers, one for each, got 1"),
        ("long", "member 0: {about}: wanted 3 numbers, one for each, got 4"),
        ("text", "member 0: {about}: wanted a number for each, got str"),
        ("number", "member 0: {about}: wanted a number for each, got float"),
        ("none", "member 0: {about}: wanted a number for each, got NoneType"),
        ("dict", "member 0: {about}: wanted a number for each, got dict"),
        ("set", "member 0: {about}: wanted a number for each, got set"),
        ("table", "member 0: {about}: wanted a number for each, got ndarray"),
        ("cloud", "member 0: {about}: wanted a number for each, got Tensor"),
        ("absent", "member 0: {about}: KeyError: 'absent'"),
        ("nan", "member 1: wanted a finite number, got nan"),
        ("word", "member 2: wanted a number, got str"),
    ],
)
def test_what_is_no_number_each_is_an_error_in_one_line(function: str, form: str, problem: str) -> None:
    about = "over all 3 rollouts" if function == "everywhere" else "over its group of 3"
    with pytest.raises(RewardError) as caught:
        score(rewards_of(function), rollouts_of(form, "b", "c", groups=(5, 5, 5)))
    message = str(caught.value)
    assert message.startswith(
        f"reward '{MODULE}:{function}' of prompt train:5, {problem.format(about=about)}"
    )
    assert "\n" not in message
    assert (caught.value.prompt_id, caught.value.channel) == ("train:5", f"{MODULE}:{function}")


@pytest.mark.parametrize("function", ["loops", "sleeps"])
def test_a_call_about_a_group_is_limited_in_time(function: str) -> None:
    """Only the group that never returns is called under the short limit: a busy machine stops any call."""
    first = score(rewards_of(function, timeout_s=60.0), rollouts_of("a", "b"))
    assert first.total_R.tolist() == [1.0, 1.0]
    with pytest.raises(
        RewardError,
        match=r"prompt train:1, member 2: over its group of 2: took longer than reward\.timeout_s",
    ):
        score(
            rewards_of(function, timeout_s=0.2),
            rollouts_of("a", "b", "c", "loop", groups=(0, 0, 1, 1)),
            first,
        )


def test_a_call_about_a_group_changes_nothing_else() -> None:
    handler = signal.getsignal(signal.SIGINT)
    rollouts = rollouts_of("fine", "fine", "bad")
    assert score(rewards_of("upsets"), rollouts[:2]).total_R.tolist() == [1.0, 1.0]
    with pytest.raises(RewardError, match="ZeroDivisionError"):
        score(rewards_of("upsets"), rollouts)
    with pytest.raises(
        RewardError, match="over its group of 3: ValueError: assignment destination is read-only"
    ):
        score(rewards_of("writes"), rollouts)
    assert torch.is_grad_enabled()
    assert signal.getsignal(signal.SIGINT) == handler
    assert all(rollout.loss_mask.all() for rollout in rollouts)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("nowhere", r"a scope from \['rollout', 'group', 'batch'\] on '{}', got 'prompt'"),
        ("two", r"a function that takes \(responses, answer, rollouts\) of one group, or .*, got '{}' with"),
    ],
)
def test_a_scope_that_cannot_be_served_is_refused_at_load(name: str, problem: str) -> None:
    with pytest.raises(ValueError, match="^reward.functions: wanted " + problem.format(f"{MODULE}:{name}")):
        rewards_of(name)


def test_names_of_arguments_are_free() -> None:
    assert score(rewards_of("completions"), rollouts_of("a", "b")).total_R.tolist() == [1.0, 1.0]


def test_a_run_votes_within_groups_and_evaluation_within_a_prompts_samples(tmp_path: Path) -> None:
    config = tiny_config(
        tmp_path / "run",
        run={"steps": 1, "prompts_per_step": 3},
        rollout={"group_size": 4},
        evaluate={"every": 1, "samples": 2, "temperature": 1.0, "profile_prompts": 0},
        reward={"functions": [f"{MODULE}:length", f"{MODULE}:majority"]},
    )
    train(config, show=lambda line: None)
    votes = [rows for name, rows in user().CALLS if name == "majority"]
    assert [len(rows) for rows in votes] == [2] * 8 + [4] * 3 + [2] * 8
    assert all(len({prompt for prompt, _ in rows}) == 1 for rows in votes)
