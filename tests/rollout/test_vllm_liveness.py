"""Dead, hung and busy engine processes are told apart: real processes that speak the engine's protocol."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from g2rpo_fast.rollout.vllm import liveness
from g2rpo_fast.rollout.vllm.liveness import BUSY_SHARE, Stillness, Usage, Watch, usage_of
from g2rpo_fast.rollout.vllm.process import EngineHung, EngineProcess
from g2rpo_fast.rollout.vllm.shared_files import SHARED
from g2rpo_fast.types import EngineError
from runs import HELPERS, busy_loops

LIMIT_S = 3.0


@contextmanager
def stand_in(directory: Path) -> Iterator[EngineProcess]:
    launch: Any = None  # what vLLM would be built from
    process = EngineProcess(
        launch,
        {"PYTHONPATH": str(HELPERS)},
        directory / "log",
        silent_s=LIMIT_S,
        module="engine_stand_in",
    )
    try:
        process.ready(60.0)
        yield process
    finally:
        process.kill()
        process.wait_gone()


def ask(process: EngineProcess, command: str, **arguments: Any) -> Any:
    return process.request(command, phase="generation", idle_s=LIMIT_S, **arguments)


def seconds_to(process: EngineProcess, message: str, command: str, **arguments: Any) -> float:
    began = time.monotonic()
    with pytest.raises(EngineHung, match=rf"hangs in generation \(process {process.pid}\): {message}"):
        ask(process, command, **arguments)
    return time.monotonic() - began


@pytest.mark.slow
@pytest.mark.parametrize("loops", [pytest.param(0, marks=pytest.mark.deep), 4])
def test_what_works_is_waited_for_however_long(tmp_path: Path, loops: int) -> None:
    with stand_in(tmp_path) as process, busy_loops(loops):
        for command in ("spin", "hold_lock", "work_elsewhere"):
            began = time.monotonic()
            assert ask(process, command, seconds=2 * LIMIT_S) is None  # of a speed measured before: roughly
            assert time.monotonic() - began > LIMIT_S
        assert len(ask(process, "answer", size=30_000_000)) == 30_000_000


@pytest.mark.parametrize("loops", [0, pytest.param(4, marks=pytest.mark.deep)])
def test_a_stopped_process_is_hung(tmp_path: Path, loops: int) -> None:
    with stand_in(tmp_path) as process, busy_loops(loops):
        assert LIMIT_S <= seconds_to(process, rf"process {process.pid} of its group .* 3 s", "stop") < 15


def test_a_stopped_worker_is_found_while_the_others_spin(tmp_path: Path) -> None:
    with stand_in(tmp_path) as process:
        assert seconds_to(process, "process .* has been stopped for 3 s", "wait_for_stopped_worker") < 20


@pytest.mark.parametrize("loops", [pytest.param(0, marks=pytest.mark.deep), 4])
def test_a_process_that_lives_and_does_nothing_is_hung(tmp_path: Path, loops: int) -> None:
    with stand_in(tmp_path) as process, busy_loops(loops):
        taken = seconds_to(
            process, "it lives and does nothing: no CPU time used for 3 s", "sleep", seconds=1000
        )
        assert LIMIT_S <= taken < 15


def test_a_process_without_a_heartbeat_has_less_time_to_be_idle(tmp_path: Path) -> None:
    """In a start, which may be idle for long as long as the heart beats."""
    with stand_in(tmp_path) as process:
        assert process.request("sleep", phase="start", idle_s=60.0, seconds=LIMIT_S + 3) is None
        began = time.monotonic()
        with pytest.raises(EngineHung, match="no heartbeat and no CPU time used for 3 s"):
            process.request("sleep_with_lock", phase="start", idle_s=60.0, seconds=1000)
        assert time.monotonic() - began < 15


def test_a_dead_process_is_named_at_once(tmp_path: Path) -> None:
    with stand_in(tmp_path) as process:
        began = time.monotonic()
        with pytest.raises(EngineError, match=r"died in generation .*ended by SIGKILL") as error:
            ask(process, "die")
        assert not isinstance(error.value, EngineHung)
        assert time.monotonic() - began < 5


def test_requests_that_move_nothing_add_up(tmp_path: Path) -> None:
    with stand_in(tmp_path) as process:
        for _ in range(3):
            ask(process, "sleep", seconds=0.7 * LIMIT_S)
        ask(process, "sleep", seconds=0.7 * LIMIT_S)
        taken = seconds_to(process, "it lives and does nothing", "sleep", seconds=1000, moved=False)
        assert taken < 0.7 * LIMIT_S + 8


def test_what_computes_for_ever_without_an_answer_is_hung_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(liveness, "SPIN_S", 3.0)
    with stand_in(tmp_path) as process:
        seconds_to(process, r"it has computed for \d+ s without a token or an answer", "spin", seconds=1000)


def test_usage_is_that_of_all_processes_of_the_group() -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'while True: pass'])"
    group = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    try:
        before = usage_of(group.pid)
        while len(usage_of(group.pid).cpu_s) < 2 or sum(usage_of(group.pid).cpu_s.values()) < 0.5:
            time.sleep(0.1)
        after = usage_of(group.pid)
        assert group.pid in before.cpu_s
        assert set(after.cpu_s) <= set(after.runnable_s)
        assert after.stopped is None
        assert usage_of(os.getpid() + 10**7) == Usage()
    finally:
        os.killpg(group.pid, 9)
        group.wait()


def starved(now_s: float) -> Usage:
    """A thread that has always wanted a CPU, and never got one."""
    return Usage({1: 0.0}, {1: now_s, 2: 0.0})


def polling(now_s: float) -> Usage:
    """A thread that sleeps most of the time, and waits for a CPU for long when it wakes up."""
    return Usage({1: 0.0}, {1: 0.3 * now_s, 2: 0.0})


def trickling(now_s: float) -> Usage:
    """Next to nothing in each of many processes, as idle threads do."""
    return Usage(dict.fromkeys(range(8), 0.5 * BUSY_SHARE * now_s), {1: 0.5 * BUSY_SHARE * now_s})


def working(now_s: float) -> Usage:
    return Usage({1: 2 * BUSY_SHARE * now_s}, {1: 2 * BUSY_SHARE * now_s})


@pytest.mark.parametrize(
    ("use", "hung"), [(starved, False), (polling, True), (trickling, True), (working, False)]
)
def test_what_is_starved_is_no_more_hung_than_what_works(use: Any, hung: bool) -> None:
    still = Stillness(25.0, use(0.0))
    verdicts = [still.too_long(1.0, use(float(now)), alive=False) for now in range(1, 100)]
    assert any(verdicts) == hung
    assert verdicts[:24] == [False] * 24
    assert verdicts[24] == hung


def test_a_trainer_that_was_away_itself_finds_nothing_hung(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both stopped for an hour and gone on: the engine has not had its time yet."""
    group = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"], start_new_session=True)
    beats, heart = os.pipe()
    watch = Watch(group.pid, beats, silent_s=25.0)
    try:
        now = time.monotonic()
        monkeypatch.setattr(liveness.time, "monotonic", lambda: now + 2)
        assert watch.look() is None
        monkeypatch.setattr(liveness.time, "monotonic", lambda: now + 3600)
        assert watch.look() is None
        monkeypatch.setattr(liveness.time, "monotonic", lambda: now + 3605)
        assert watch.look() is None
    finally:
        watch.close()
        os.close(heart)
        group.kill()
        group.wait()


@pytest.mark.skipif(not SHARED.is_dir(), reason="named shared memory has no directory here")
@pytest.mark.parametrize("ending", ["kill", "close"])
def test_shared_memory_of_a_killed_engine_is_removed_and_that_of_others_stays(
    tmp_path: Path, ending: str
) -> None:
    name = f"g2rpo-test-{os.getpid()}-{ending}"
    ours, others = SHARED / f"{name}-engine", SHARED / f"{name}-others"
    others.write_bytes(b"kept")
    try:
        with stand_in(tmp_path) as process:
            for file in (ours, others):
                ask(process, "share", path=str(file))
            assert ours.exists()
            os.kill(process.pid, signal.SIGSTOP)  # it cannot clean up
            getattr(process, ending)()
            process.wait_gone()
            assert not ours.exists()
        assert others.exists()
    finally:
        ours.unlink(missing_ok=True)
        others.unlink(missing_ok=True)
