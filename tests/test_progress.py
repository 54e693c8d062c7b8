"""What is told of a phase while it lasts: on a terminal, into a pipe; by an engine, an update, a run."""

from __future__ import annotations

import io
import os
import pty
import time
from pathlib import Path
from typing import Any

import pytest

from g2rpo_fast.progress import GROWTH, Progress, clock
from g2rpo_fast.rollout.vllm.engine import Flight, _rows_done
from g2rpo_fast.train import train
from g2rpo_fast.types import Request, Sampling
from local_engines import engine_of, plain_model, requests, tokens
from objectives import Loss
from runs import quiet, tiny_config
from updates import advantages, batches, learner, rollouts


class Reports:
    """All that a piece of work reports."""

    def __init__(self) -> None:
        self.done: list[float] = []
        self.tokens: list[int] = []
        self.total: int | None = None

    def __call__(self, done: float, *, tokens: int = 0, total: int | None = None) -> None:
        self.done.append(done)
        self.tokens.append(tokens)
        self.total = total if total is not None else self.total


def test_a_phase_tells_how_far_it_is_how_fast_and_how_much_longer() -> None:
    phase = Progress().phase("sampling", 40, "rows")
    assert phase.told(3) == "0 of 40 rows, 0:03 so far"
    phase(10, tokens=2000)
    assert phase.told(20) == "10 of 40 rows, 100 tokens/s, 0:20 so far, about 1:00 left"
    phase(1.5, total=3)
    assert phase.told(6) == "2 of 3 rows, 0.25 rows/s, 0:06 so far, about 0:06 left"
    assert Progress().phase("reading the data").told(3661) == "1:01:01 so far"
    assert clock(59.6) == "1:00"


def test_lines_of_a_phase_grow_apart() -> None:
    stream, first_s, began = io.StringIO(), 0.01, time.perf_counter()
    phase = Progress(stream, first_s).phase("work", 7, "parts")
    phase(2)
    with phase:
        while stream.getvalue().count("\n") < 4:
            time.sleep(0.01)
    took = time.perf_counter() - began
    lines = stream.getvalue().splitlines()
    assert all(line.startswith("work: 2 of 7 parts, ") for line in lines)
    assert first_s * GROWTH ** (len(lines) - 1) < took


def test_a_short_phase_is_not_told() -> None:
    stream = io.StringIO()
    with Progress(stream, first_s=600).phase("work"):
        pass
    assert stream.getvalue() == ""


def test_a_bar_is_gone_and_the_cursor_back_when_a_phase_is_interrupted() -> None:
    def interrupted() -> None:
        with Progress(terminal, first_s=0).phase("sampling", 4, "rows") as phase:
            phase(1, tokens=8)
            raise KeyboardInterrupt

    ours, theirs = pty.openpty()
    with open(theirs, "w") as terminal, pytest.raises(KeyboardInterrupt):
        interrupted()
    seen = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert "sampling" in seen
    assert "1 of 4 rows" in seen
    assert seen.rindex("\x1b[?25h") > seen.rindex("\x1b[?25l")
    assert seen.endswith("\x1b[2K")


def test_the_local_engine_reports_rows_and_tokens_and_answers_the_same() -> None:
    engine, some, reports = engine_of(plain_model("llama"), max_rows=2), requests(2), Reports()
    some.append(Request(prompt_ids=some[0].prompt_ids, max_tokens=0, seed=0))
    got = engine.generate(some, Sampling(), reports)
    assert tokens(got) == tokens(engine.generate(some, Sampling()))
    assert reports.done == sorted(reports.done)
    assert reports.done[-1] == len(some)
    assert 1 < reports.done[0] < len(some)
    assert reports.tokens == sorted(reports.tokens)
    assert reports.tokens[-1] == sum(map(len, tokens(got))) > 0


def test_rows_of_a_vllm_engine_count_by_the_tokens_that_they_have() -> None:
    some = {i: Request(prompt_ids=(1,), max_tokens=10, seed=i) for i in range(4)}
    assert _rows_done(Flight(Sampling(), dict(some)), tokens=10) == 1.0
    assert _rows_done(Flight(Sampling(), {}), tokens=10) == 0.0


def test_an_update_reports_its_micro_batches() -> None:
    ours, reports, objective = learner(Loss(), budget=40), Reports(), Loss()
    stats = ours.update(batches(rollouts(), advantages(), objective), lr=1.0, report=reports)
    assert reports.total == stats["update/micro_batches"] == 3
    assert reports.done == [0, 1, 2, 3]


@pytest.mark.parametrize("ahead", [0, 1])
def test_a_run_tells_of_all_that_takes_long(ahead: int, tmp_path: Path) -> None:
    stream = io.StringIO()
    sections: dict[str, Any] = {"run": {"steps": 2, "ahead": ahead}}
    if ahead:
        sections["objective"] = {"importance": "token_truncate"}
    train(tiny_config(tmp_path, **sections), show=quiet, progress=Progress(stream, first_s=0))
    told = stream.getvalue()
    for phase in (
        "warm start", "reading the data", "loading the model", "starting the rollout engine", "evaluation",
        "guidance profile, 0% of the trace, from prompt 1", "step 1: sampling",
        "step 2: sampling", "step 2: rewards of 24 rows", "step 2: update", "step 2: weights to the engine",
        "saving a checkpoint", "saving the model",
    ):  # fmt: skip
        assert f"\n{phase}: " in f"\n{told}", phase
