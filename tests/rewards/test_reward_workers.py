"""Rewards from several processes: the same values, whatever happens to one of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from g2rpo_fast.rewards import RewardConfig, RewardError
from g2rpo_fast.rewards.calls import calls_of
from g2rpo_fast.rewards.loading import RewardSet, load_rewards
from g2rpo_fast.rewards.scoring import score
from g2rpo_fast.types import Rollout
from own_modules import own_module
from runs import HELPERS
from scored import row_of

MODULE = "workers_of_a_user"
SOURCE = """
import asyncio, ctypes, os, time
import torch

def length(response, answer, rollout): return len(response) / 7
def pid(response, answer, rollout): return float(os.getpid()) if response == "pid" else 0.0
def summed(response, answer, rollout):
    return torch.linspace(0, 1, 10_001).mul(len(response) + 0.1).sum()
def ranks(responses, answer, rollouts): return [responses.index(r) for r in responses]
ranks.scope = "group"
def total(completions, trainer_state, **kwargs):
    return [trainer_state.global_step, *[None] * (len(completions) - 1)]
async def waits(response, answer, rollout):
    await asyncio.sleep(0.01)
    return pid(response, answer, rollout)
later = lambda response, answer, rollout: waits(response, answer, rollout)
def writes(response, answer, rollout):
    if response == "write": rollout.loss_mask[:] = False
    return 1.0
def fails(response, answer, rollout): return 1 / (response != "bad")
def loops(response, answer, rollout):
    while response == "loop": pass
    return 1.0
def stuck(response, answer, rollout):
    if response == "loop": ctypes.PyDLL(None).sleep(600)
    return 1.0
def crashes(response, answer, rollout):
    if response == "crash": os.kill(os.getpid(), 9)
    return 1.0
def crashes_once(response, answer, rollout):
    if response == "crash" and not os.path.exists("crashed"):
        open("crashed", "w").close()
        os._exit(3)
    return 1.0
"""
NAMES = ("length", "summed", "ranks", "total", "waits", "later", "pid", "writes", "fails", "loops", "stuck",
    "crashes", "crashes_once")  # fmt: skip
TEXTS = ("a", "bcd", "ef", "a", "g", "=answer 1", "a", "hh")
BUILT_IN = "exact_match"


@pytest.fixture(scope="module", autouse=True)
def _module_of_a_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    with own_module(MODULE, SOURCE, tmp_path_factory.mktemp("user"), patch):
        yield
    patch.undo()


@pytest.fixture(scope="module")
def two(_module_of_a_user: None) -> Iterator[RewardSet]:
    """Two processes that know all functions."""
    rewards = rewards_of(*NAMES, BUILT_IN, workers=2, timeout_s=None, answer_marker="=")
    rewards.place.step = 5
    yield rewards
    rewards.close()


def rollouts_of(*texts: str, groups: tuple[int, ...] = ()) -> list[Rollout]:
    rows = [row_of(group, member, [3]) for member, group in enumerate(groups or [0] * len(texts))]
    prompts = [replace(row.prompt, answer=f"answer {row.group}") for row in rows]
    return [replace(row, text=text, prompt=prompt) for row, text, prompt in zip(rows, texts, prompts)]


def rewards_of(*names: str, **values: Any) -> RewardSet:
    functions = tuple(name if name == BUILT_IN else f"{MODULE}:{name}" for name in names)
    return load_rewards(RewardConfig(functions=functions, **values))


def paid(two: RewardSet, name: str, *texts: str, limit_s: float | None = None) -> list[list[float]]:
    """What the processes pay for the channel alone."""
    calls = calls_of(two.channels, two.scopes, rollouts_of(*texts), 0)
    chosen = [call for call in calls if call.channel == f"{MODULE}:{name}"]
    assert two.workers is not None
    return two.workers.values(chosen, [limit_s] * len(chosen), two.place)


def test_values_are_the_same_bits_whatever_the_number_of_processes(two: RewardSet) -> None:
    here = rewards_of(*NAMES, BUILT_IN, answer_marker="=")
    here.place.step = 5
    rollouts = rollouts_of(*TEXTS, groups=(0, 0, 0, 0, 1, 1, 1, 1))
    with_two, alone = score(two, rollouts), score(here, rollouts)
    assert np.isfinite(alone.total_R).all()
    np.testing.assert_array_equal(with_two.reward_RK, alone.reward_RK)
    assert with_two.reward_RK.tobytes() == alone.reward_RK.tobytes()
    assert alone.reward_RK[0, 3] == 5.0
    assert alone.reward_RK[:, -1].tolist() == [0, 0, 0, 0, 0, 1, 0, 0]
    assert with_two.total_R.tobytes() == alone.total_R.tobytes()
    assert score(two, []).reward_RK.shape == (0, len(NAMES) + 1)


def test_computing_is_elsewhere_and_waiting_is_here(two: RewardSet) -> None:
    pids = {value for (value,) in paid(two, "pid", *["pid"] * 20)}
    assert 1 <= len(pids) <= 2
    assert os.getpid() not in pids
    assert two.waits[NAMES.index("waits")]
    assert not two.waits[NAMES.index("later")]  # nothing told that it is async: awaited where it was called
    values = score(two, rollouts_of("pid", "b")).reward_RK[0, 4:6]
    assert values[0] == os.getpid()
    assert values[1] in pids


def test_an_error_is_the_same_as_in_this_process(two: RewardSet) -> None:
    texts = ("a", "b", "bad", "bad", "c")
    with pytest.raises(RewardError) as alone:
        score(rewards_of("fails"), rollouts_of(*texts))
    with pytest.raises(RewardError) as caught:
        paid(two, "fails", *texts)
    assert str(caught.value) == str(alone.value)
    assert caught.value.rollout.member == 2
    assert "ZeroDivisionError: division by zero" in caught.value.__notes__[0]
    with pytest.raises(RewardError, match="assignment destination is read-only"):
        paid(two, "writes", "write")
    assert paid(two, "fails", "a") == [[1.0]]


@pytest.mark.parametrize("function", [pytest.param("loops", marks=pytest.mark.deep), "stuck"])
def test_a_call_over_its_time_is_ended_also_inside_c(two: RewardSet, function: str) -> None:
    problem = r"member 1: took longer than reward\.timeout_s = 1; the response begins 'loop'"
    with pytest.raises(RewardError, match=problem):
        paid(two, function, "a", "loop", limit_s=1.0)
    assert paid(two, function, "a", "b") == [[1.0], [1.0]]


def test_a_crash_is_counted_and_named_and_the_run_goes_on(
    two: RewardSet, capfd: pytest.CaptureFixture[str]
) -> None:
    before = two.counts["crashed"]
    np.testing.assert_array_equal(paid(two, "crashes", "a", "crash", "b"), [[1.0], [np.nan], [1.0]])
    assert two.counts["crashed"] == before + 1
    told = capfd.readouterr().err
    assert (
        f"warning: reward '{MODULE}:crashes' of prompt train:0, member 1: its process ended with -9" in told
    )


@pytest.mark.deep
def test_a_crash_that_does_not_come_again_changes_nothing(two: RewardSet) -> None:
    before = two.counts["crashed"]
    assert paid(two, "crashes_once", "crash", "crash") == [[1.0], [1.0]]
    assert two.counts["crashed"] == before


def test_what_another_process_cannot_be_given_is_refused_at_load() -> None:
    def local(response: str, answer: str, rollout: object) -> float:
        return 1.0

    with pytest.raises(
        ValueError, match=r"^reward\.workers: wanted functions that another process can import"
    ):
        load_rewards(RewardConfig(functions=(local,), workers=1))


def test_workers_end_with_a_run_that_is_killed(tmp_path: Path) -> None:
    """One of them is in the middle of a call that never ends."""
    (tmp_path / "endless.py").write_text(
        "import os, time\n"
        "def reward(response, answer, rollout):\n"
        "    print(os.getpid(), flush=True)\n"
        "    while True: pass\n"
    )
    script = """
from g2rpo_fast.rewards import RewardConfig
from g2rpo_fast.rewards.loading import load_rewards
from g2rpo_fast.rewards.scoring import score
from scored import row_of
if __name__ == "__main__":
    config = RewardConfig(functions=("endless:reward",), workers=1, timeout_s=None)
    score(load_rewards(config), [row_of(0, 0, [1])])
"""
    (tmp_path / "run.py").write_text(script)
    paths = os.pathsep.join([str(HELPERS), *filter(None, sys.path)])
    process = subprocess.Popen(
        [sys.executable, "run.py"], cwd=tmp_path, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    process.wait()
    while Path(f"/proc/{worker}").exists() and "\nState:\tZ" not in _status(worker):
        time.sleep(0.05)  # a worker that stays fails by the suite's own limit


def _status(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
