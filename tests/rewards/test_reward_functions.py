"""A user's own reward function: what it may return, how long it may take, and what it cannot change."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from g2rpo_fast.credit import Center, Channels, Std, Whiten, advantages
from g2rpo_fast.pieces import Scored
from g2rpo_fast.rewards import RewardConfig, RewardError
from g2rpo_fast.rewards.loading import RewardSet, load_rewards
from g2rpo_fast.rewards.scoring import score
from g2rpo_fast.step_metrics import rollout_metrics
from g2rpo_fast.types import Prompt, Rollout
from own_modules import own_module
from scored import CLOCK, NO_STORE, scored_of

MODULE = "functions_of_a_user"
SOURCE = """
import asyncio, decimal, fractions, hashlib, os, signal, threading, time
import numpy as np, torch

FULL = {"int": 2, "float": 0.25, "bool": True, "np32": np.float32(0.5), "npint": np.int64(3),
    "npbool": np.bool_(True), "np0d": np.array(1.5), "torch": torch.tensor(1.0), "torchint": torch.tensor(2),
    "grad": torch.tensor(1.5, requires_grad=True), "decimal": decimal.Decimal("0.5"),
    "fraction": fractions.Fraction(1, 4), "large": 1e300, "none": None,
    "str": "1.0", "list": [1.0], "complex": 1j, "array": np.ones(1), "tensor": torch.ones(1), "dict": {},
    "huge": 10 ** 400, "hugest": 10 ** 5000, "inf": float("inf"), "nan": float("nan"),
    "ninf": np.float64("-inf"),
    "decimal_nan": decimal.Decimal("sNaN"), "decimal_inf": decimal.Decimal("inf"),
    "torch_nan": torch.tensor(float("nan"))}
def value(response, answer, rollout): return FULL[response]
async def later(response, answer, rollout):
    await asyncio.sleep(0.01)
    return FULL[response]

def loops(response, answer, rollout):
    while response == "loop": pass
    return 1.0
def catches(response, answer, rollout):
    while True:
        try:
            while True: pass
        except Exception: pass
def sleeps(response, answer, rollout): time.sleep(60)
def waits(response, answer, rollout): threading.Event().wait()
def alarmed(response, answer, rollout):
    signal.alarm(0)
    while True: pass
def stuck(response, answer, rollout):
    hashlib.pbkdf2_hmac("sha256", b"a", b"b", 5_000_000)  # lets other threads run, and looks for no signal
    return 1.0
async def async_sleeps(response, answer, rollout):
    await asyncio.sleep(60 if response == "sleep" else 0.01)
    return 1.0
async def async_loops(response, answer, rollout):
    while response == "loop": pass
    await asyncio.sleep(0.01)
    return 1.0
async def async_fails(response, answer, rollout):
    await asyncio.sleep(0.01)
    raise TimeoutError("of its own")

ACTIVE, MOST, LOOPS = [0], [0], set()
async def counted(response, answer, rollout):
    ACTIVE[0] += 1; MOST[0] = max(MOST[0], ACTIVE[0]); LOOPS.add(asyncio.get_running_loop())
    await asyncio.sleep(0.05)
    ACTIVE[0] -= 1
    return float(len(response))
class Judge:
    async def __call__(self, response, answer, rollout): return 2.0
judge = Judge()
partial = lambda response, answer, rollout: later(response, answer, rollout)

def exits(response, answer, rollout): raise SystemExit(3)
def interrupted(response, answer, rollout): raise KeyboardInterrupt
def upsets(response, answer, rollout):
    torch.set_grad_enabled(False); torch.set_default_dtype(torch.float64); torch.set_num_threads(3)
    torch.set_float32_matmul_precision("medium"); os.chdir("/")
    signal.signal(signal.SIGINT, signal.SIG_IGN); signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, lambda *_: None); signal.setitimer(signal.ITIMER_REAL, 30)
    return 1 / (response == "fine")
async def upsets_later(response, answer, rollout): return upsets(response, answer, rollout)
def writes_mask(response, answer, rollout): rollout.loss_mask[:] = False
def writes_logp(response, answer, rollout): rollout.rollout_logp[0] = 0.0
def writes_versions(response, answer, rollout): rollout.token_versions += 1
def writes_ids(response, answer, rollout): rollout.response_ids[0] = 7

def two(response, answer): return 1.0
def named(*, response, answer, rollout): return 1.0
def with_kwargs(response, answer, rollout, **kwargs): return 1.0
def any_three(*values): return 1.0
def graded(response, answer, rollout): return {"no": None}.get(response, len(response) - 2)
"""


def rollout_of(text: str, group: int = 0, member: int = 0) -> Rollout:
    return Rollout(
        prompt=Prompt(id=f"train:{group}", text="q", token_ids=(1,), answer="72"),
        group=group,
        member=member,
        training_prompt_ids=(1,),
        sampling_prompt_ids=(1,),
        response_ids=(4, 5),
        guidance_len=0,
        loss_mask=np.ones(2, dtype=np.bool_),
        rollout_logp=np.full(2, -0.5, dtype=np.float32),
        text=text,
        finish_reason="stop",
        weight_version=0,
        token_versions=np.zeros(2, np.int32),
    )


@pytest.fixture(autouse=True)
def _module_of_a_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with own_module(MODULE, SOURCE, tmp_path, monkeypatch):
        yield


def rewards_of(*names: str, **values: object) -> RewardSet:
    functions = tuple(f"{MODULE}:{name}" for name in names)
    return load_rewards(RewardConfig(functions=functions, **values))  # type: ignore[arg-type]


def paid(name: str, *texts: str, **values: object) -> list[float]:
    return score(rewards_of(name, **values), [rollout_of(text) for text in texts]).total_R.tolist()


NUMBERS = {
    "int": 2.0, "float": 0.25, "bool": 1.0, "np32": 0.5, "npint": 3.0, "npbool": 1.0, "np0d": 1.5,
    "torch": 1.0, "torchint": 2.0, "grad": 1.5, "decimal": 0.5, "fraction": 0.25, "large": 1e300, "none": 0.0,
}  # fmt: skip


@pytest.mark.parametrize("function", ["value", "later", "partial"])
def test_numbers_of_every_library_count(function: str) -> None:
    assert paid(function, *NUMBERS) == list(NUMBERS.values())


@pytest.mark.parametrize("function", ["value", "later"])
@pytest.mark.parametrize(
    ("returned", "problem"),
    [
        ("str", "wanted a number, got str"),
        ("list", "wanted a number, got list"),
        ("dict", "wanted a number, got dict"),
        ("complex", "wanted a number, got complex"),
        ("array", "wanted a number, got ndarray"),
        ("tensor", "wanted a number, got Tensor"),
        ("huge", "wanted a number that a float can hold"),
        ("hugest", "wanted a number that a float can hold"),
        ("decimal_nan", "wanted a number that a float can hold"),
        ("inf", "wanted a finite number, got inf"),
        ("ninf", "wanted a finite number, got -inf"),
        ("nan", "wanted a finite number, got nan"),
        ("decimal_inf", "wanted a finite number, got Infinity"),
        ("torch_nan", "wanted a finite number, got nan"),
        ("absent", "KeyError: 'absent'"),
    ],
)
def test_what_is_no_number_is_a_reward_error(function: str, returned: str, problem: str) -> None:
    with pytest.raises(RewardError, match=f"prompt train:0, member 0: {problem}"):
        paid(function, returned)


def test_sum_that_no_float_holds_is_a_reward_error() -> None:
    rewards = rewards_of("value", weights={f"{MODULE}:value": 1e10})
    with pytest.raises(RewardError, match="wanted a finite sum, got inf"):
        score(rewards, [rollout_of("large")])


@pytest.mark.parametrize(
    "function", ["loops", "catches", "sleeps", "waits", "alarmed", "async_sleeps", "async_loops"]
)
@pytest.mark.parametrize("in_main", [True, False])
def test_call_over_its_time_is_a_reward_error_that_names_the_prompt(function: str, in_main: bool) -> None:
    if not in_main and function in ("sleeps", "waits", "alarmed"):
        pytest.skip("a signal reaches the main thread only")
    rewards = rewards_of(function, timeout_s=0.4)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            score(rewards, [rollout_of("sleep" if "sleeps" in function else "loop")])
        except RewardError as error:
            failures.append(error)

    began_s = time.monotonic()
    thread = threading.Thread(target=work)
    _ = work() if in_main else (thread.start(), thread.join())
    assert time.monotonic() - began_s < 20
    assert "prompt train:0, member 0: took longer than reward.timeout_s = 0.4" in str(failures[0])
    assert paid("loops", "fine", timeout_s=20.0) == [1.0]


def test_call_into_c_that_does_not_return_is_told_of(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("g2rpo_fast.rewards.time_limit.GRACE_S", 0.2)
    with pytest.raises(RewardError, match=r"took longer than reward\.timeout_s"):
        paid("stuck", "stuck", timeout_s=0.1)
    assert "reward 'functions_of_a_user:stuck' of prompt train:0 is" in capfd.readouterr().err


def test_calls_within_their_time_leave_no_thread_and_no_handler() -> None:
    before, handlers = threading.active_count(), [signal.getsignal(s) for s in signal.valid_signals()]
    assert paid("loops", *["fine"] * 50, timeout_s=30.0) == [1.0] * 50
    assert [signal.getsignal(s) for s in signal.valid_signals()] == handlers
    deadline_s = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_async_calls_are_awaited_many_at_a_time_on_one_loop() -> None:
    rewards = rewards_of("counted", concurrency=8)
    began_s = time.monotonic()
    for _ in range(2):
        assert score(rewards, [rollout_of("x" * n) for n in range(32)]).total_R.tolist() == list(range(32))
    module = sys.modules[MODULE]
    assert module.MOST == [8]  # type: ignore[attr-defined]
    assert len(module.LOOPS) == 1  # type: ignore[attr-defined]
    assert time.monotonic() - began_s < 0.5 * 64 * 0.05 + 5


def test_async_objects_and_their_own_errors() -> None:
    assert paid("judge", "a", "b") == [2.0, 2.0]
    with pytest.raises(RewardError, match="member 0: TimeoutError: of its own"):
        paid("async_fails", "a")


def test_async_calls_work_where_a_loop_runs_already() -> None:
    async def notebook() -> list[float]:
        return paid("later", "int", "float")

    assert asyncio.run(notebook()) == [2.0, 0.25]


def test_exit_is_a_reward_error_and_an_interrupt_is_not() -> None:
    with pytest.raises(RewardError, match="SystemExit: 3"):
        paid("exits", "a")
    with pytest.raises(KeyboardInterrupt):
        paid("interrupted", "a")


@pytest.mark.parametrize("function", ["upsets", "upsets_later"])
@pytest.mark.parametrize("text", ["fine", "fails"])
def test_what_a_call_changes_of_the_process_is_put_back(function: str, text: str) -> None:
    def state() -> list[object]:
        return [
            torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads(), os.getcwd(),
            torch.get_float32_matmul_precision(), signal.getitimer(signal.ITIMER_REAL)[0],
            *map(signal.getsignal, (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)),
        ]  # fmt: skip

    before = state()
    with nullcontext() if text == "fine" else pytest.raises(RewardError, match="ZeroDivisionError"):
        assert paid(function, text) == [1.0]
    assert state() == before


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        ("writes_mask", "ValueError: assignment destination is read-only"),
        ("writes_logp", "ValueError: assignment destination is read-only"),
        ("writes_versions", "ValueError: output array is read-only"),
        ("writes_ids", "TypeError: 'tuple' object does not support item assignment"),
    ],
)
def test_rollout_cannot_be_written(function: str, problem: str) -> None:
    rollout = rollout_of("a")
    with pytest.raises(RewardError, match=problem) as caught:
        score(rewards_of(function), [rollout])
    assert caught.value.rollout is rollout
    assert rollout.loss_mask.all()
    assert rollout.loss_mask.flags.writeable  # only the function's view is read-only


@pytest.mark.parametrize("name", ["two", "named", "Judge"])
def test_function_that_cannot_take_a_rollout_is_refused_at_load(name: str) -> None:
    with pytest.raises(
        ValueError, match=rf"takes \(response, answer, rollout\) of one rollout, or .*, got '{MODULE}:{name}'"
    ):
        rewards_of(name)


@pytest.mark.parametrize("name", ["with_kwargs", "any_three"])
def test_function_that_can_take_a_rollout_is_called(name: str) -> None:
    assert paid(name, "a") == [1.0]


def test_success_is_more_than_the_threshold() -> None:
    rewards = score(rewards_of("graded"), [rollout_of("x" * n) for n in range(5)])
    assert rewards.reward_RK[:, 0].tolist() == [-2.0, -1.0, 0.0, 1.0, 2.0]
    assert rewards.accuracy_R.tolist() == [0.0, 0.0, 0.0, 1.0, 1.0]
    rewards = score(rewards_of("graded", success=1.0), [rollout_of("x" * n) for n in range(5)])
    assert rewards.accuracy_R.tolist() == [0.0, 0.0, 0.0, 0.0, 1.0]


def test_channel_that_does_not_apply_is_left_out_of_sums_and_means() -> None:
    none, rollouts = float("nan"), [rollout_of(text) for text in ("none", "int", "float", "none")]
    rewards = score(rewards_of("value", "with_kwargs"), rollouts)
    np.testing.assert_array_equal(rewards.reward_RK, [[none, 1.0], [2.0, 1.0], [0.25, 1.0], [none, 1.0]])
    assert rewards.total_R.tolist() == [1.0, 3.0, 1.25, 1.0]
    np.testing.assert_array_equal(rewards.accuracy_R, [none, 1.0, 1.0, none])
    scored = Scored(rollouts=tuple(rollouts), rewards=rewards, clock=CLOCK)
    advantage_R = advantages((Center(), Std()), scored, NO_STORE)
    total_R = np.array([1.0, 3.0, 1.25, 1.0])
    np.testing.assert_allclose(
        advantage_R, (total_R - total_R.mean()) / (total_R.std(ddof=1) + 1e-4), rtol=1e-12
    )
    metrics = rollout_metrics(scored, scored.keep([0, 1]), advantage_R[:2])
    assert (metrics["rollout/rows"], metrics["rollout/trained_rows"]) == (4.0, 2.0)
    assert metrics[f"reward/{MODULE}:value"] == 1.125
    assert metrics["rollout/accuracy"] == 1.0


def test_standardised_channels_count_only_the_rows_they_apply_to() -> None:
    none = float("nan")
    reward_RK = [[1.0, 0.0], [none, 1.0], [3.0, 0.0], [none, 1.0], [none, 2.0], [none, 4.0]]
    scored = scored_of(reward_RK, [0, 0, 0, 0, 1, 1], weights=[2.0, 1.0])
    got_R = advantages((Channels(eps=1e-12), Whiten(eps=1e-12)), scored, NO_STORE)
    half, third = np.sqrt(0.5), 0.5 / np.sqrt(1 / 3)
    sum_R = np.array([-2 * half - third, third, 2 * half - third, third, -half, half])
    np.testing.assert_allclose(got_R, (sum_R - sum_R.mean()) / sum_R.std(ddof=1), rtol=1e-9)
