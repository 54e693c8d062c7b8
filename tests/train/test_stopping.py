"""Whatever stops a run, nothing that was done is done again: what is saved and where that is said."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from g2rpo_fast import train
from g2rpo_fast.assemble import Parts, assemble
from g2rpo_fast.checkpoint import latest_checkpoint
from g2rpo_fast.cli import main
from g2rpo_fast.config import Config, section_types
from g2rpo_fast.console import Console
from g2rpo_fast.files import WriteError
from g2rpo_fast.interrupts import Interrupts, Terminated
from g2rpo_fast.metrics import read_metrics
from g2rpo_fast.rewards import RewardError
from g2rpo_fast.step_log import read_log
from g2rpo_fast.train import SIGNAL_STEPS, run
from g2rpo_fast.types import Rollout
from g2rpo_fast.usage import is_fault
from runs import quiet, tiny_config, without_times, wobble

PROFILE, STEP, HELD_OUT = 4 * 2 * 5, 4 * 6, 8
"""Calls of a reward function by the profile, by a step, by an evaluation."""


@dataclass
class Plan:
    """What `planned` does at a call for rollouts of one split."""

    split: str = ""
    call: int = 0
    act: Callable[[], object] = lambda: None


PLAN = Plan()


@pytest.fixture(autouse=True)
def _ctrl_c_is_heard() -> Iterator[None]:
    """A shell has what it starts in the background ignore SIGINT, and then the program ignores it too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def planned(response: str, answer: str, rollout: Rollout) -> float:
    """`wobble`, and once what `PLAN` says."""
    if rollout.prompt.id.startswith(PLAN.split or "none"):
        PLAN.call -= 1
        if PLAN.call == 0:
            PLAN.act()
    return wobble(response, answer, rollout)


@contextmanager
def plan(split: str, call: int, act: Callable[[], object]) -> Iterator[None]:
    PLAN.split, PLAN.call, PLAN.act = split, call, act
    try:
        yield
    finally:
        PLAN.split = ""


def config_of(directory: Path, **sections: dict) -> Config:
    wanted = {"reward": {"functions": ["test_stopping:planned"]}, "evaluate": {"every": 1}}
    wanted |= {"checkpoint": {"every": 100}, "samples": {"every": 1}}
    for name, section in sections.items():
        wanted[name] = wanted.get(name, {}) | section
    return tiny_config(directory, **wanted)


def result_of(directory: Path) -> tuple[list[dict], dict[str, torch.Tensor]]:
    model = AutoModelForCausalLM.from_pretrained(directory / "model")
    records = without_times(read_metrics(directory / "metrics.jsonl"))
    return [*records, *read_log(directory / "samples.jsonl")], model.state_dict()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole") / "run"
    train(config_of(directory), show=quiet)
    return result_of(directory)


class UsersOwn(BaseException):
    pass


def leaves() -> None:
    raise SystemExit(3)


def raises() -> None:
    raise UsersOwn


def swallowed_interrupt() -> None:
    with suppress(BaseException):  # as a bare `except:` of a user's function
        os.kill(os.getpid(), signal.SIGINT)


MOMENTS = {
    "error in the profile": ("train", 3, lambda: 1 / 0, RewardError, 0),
    "SystemExit before step 1": ("eval", 3, leaves, RewardError, 0),
    "error in an evaluation": ("eval", 2 * HELD_OUT + 3, lambda: 1 / 0, RewardError, 2),
    "BaseException in step 3": ("train", PROFILE + 2 * STEP + 5, raises, RewardError, 2),
    "Ctrl-C in step 2": (
        "train", PROFILE + STEP + 5, lambda: os.kill(os.getpid(), signal.SIGINT), KeyboardInterrupt, 1,
    ),
    "SIGTERM in an evaluation": (
        "eval", 3 * HELD_OUT + 3, lambda: os.kill(os.getpid(), signal.SIGTERM), Terminated, 3,
    ),
    "Ctrl-C swallowed in step 2": ("train", PROFILE + STEP + 5, swallowed_interrupt, KeyboardInterrupt, 1),
}  # fmt: skip


@pytest.mark.parametrize("moment", MOMENTS)
def test_stopped_run_continues_as_if_it_had_not_been(moment, whole, tmp_path):
    split, call, act, error, step = MOMENTS[moment]
    config = config_of(tmp_path / "run")
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with plan(split, call, act), pytest.raises(error) as stopped:
        train(config, show=quiet)
    saved = latest_checkpoint(tmp_path / "run" / "checkpoints")
    assert saved is not None
    assert saved.name == f"step_{step:08d}"
    assert any(str(saved) in note for note in stopped.value.__notes__)
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    train(config, show=quiet)
    for record in read_metrics(tmp_path / "run" / "metrics.jsonl")[1:]:  # whoever spent a step's seconds
        parts = sum(record[f"time/{phase}_s"] for phase in ("rollout", "reward", "update"))
        assert record["time/step_s"] >= parts > 0
    records, weights = result_of(tmp_path / "run")
    assert records == whole[0]
    assert all(torch.equal(weights[name], tensor) for name, tensor in whole[1].items())


def test_signal_before_a_run_begins_leaves_nothing(tmp_path):
    def at_warm_start(line: str) -> None:
        if line.startswith("warm start "):
            send(signal.SIGTERM)

    with pytest.raises(Terminated) as stopped:
        train(config_of(tmp_path / "run"), show=at_warm_start)
    assert stopped.value.__notes__ == ["this was before any training: nothing is lost"]
    assert not (tmp_path / "run").exists()


class Referred:
    pass


def test_interrupt_that_python_swallows_is_met_again_and_printed_nowhere(monkeypatch):
    told: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    interrupts = Interrupts(quiet)
    with interrupts.handled():
        for act in (lambda: send(signal.SIGINT), lambda: 1 / 0):
            thing = Referred()
            reference = weakref.ref(thing, lambda _, act=act: act())
            del thing
            assert reference() is None
        with pytest.raises(KeyboardInterrupt):
            interrupts.check()
    assert len(told) == 1


def parts_of(directory: Path, **sections: dict) -> tuple[Parts, torch.nn.Parameter]:
    parts = assemble(config_of(directory, **sections), quiet)
    weight = parts.learner.model.get_input_embeddings().weight
    assert isinstance(weight, torch.nn.Parameter)
    return parts, weight


def at_backward(weight: torch.nn.Parameter, number: int, act: Callable[[], object]) -> None:
    """Acts in the `number`-th backward pass of an update."""
    left = [number]

    def hook(grad: torch.Tensor) -> torch.Tensor:
        left[0] -= 1
        if left[0] == 0:
            act()
        return grad

    weight.register_hook(hook)


def send(*numbers: int) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


def test_signal_in_an_update_waits_for_its_end(tmp_path):
    lines: list[str] = []
    parts, weight = parts_of(tmp_path / "run")
    parts.interrupts._show = lines.append
    at_backward(weight, 1, lambda: send(signal.SIGTERM))
    with pytest.raises(Terminated), parts.interrupts.handled():
        run(parts, parts.state, Console(parts, quiet))
    assert parts.last.state.step == 1
    assert lines == ["stopping after the update of step 1; once more ends at once, without it"]
    again = assemble(parts.config, quiet)
    assert again.state.step == 1
    assert again.state.unlogged
    for got, wanted in zip(again.learner.model.parameters(), parts.learner.model.parameters(), strict=True):
        assert torch.equal(got, wanted)


def test_second_signal_ends_at_once(tmp_path):
    parts, weight = parts_of(tmp_path / "run")
    at_backward(weight, 1, lambda: send(signal.SIGINT, signal.SIGINT))
    with pytest.raises(KeyboardInterrupt) as stopped, parts.interrupts.handled():
        run(parts, parts.state, Console(parts, quiet))
    assert stopped.value.__notes__ == ["ended at once, without saving, and there is no checkpoint yet"]
    assert latest_checkpoint(tmp_path / "run" / "checkpoints") is None


def test_error_between_the_steps_of_an_update_saves_no_half_of_it(tmp_path):
    parts, weight = parts_of(tmp_path / "run", checkpoint={"every": 1})
    at_backward(weight, 4, lambda: [][0])  # the second of step 2
    with pytest.raises(IndexError) as stopped:
        run(parts, parts.state, Console(parts, quiet))
    newest = latest_checkpoint(tmp_path / "run" / "checkpoints")
    assert newest is not None
    assert newest.name == "step_00000001"
    assert re.search(
        "in the middle of an update.*newest checkpoint is .*step_00000001", stopped.value.__notes__[0]
    )
    assert is_fault(stopped.value)


def test_error_before_the_first_step_of_an_update_saves_the_state_before_it(tmp_path):
    parts, weight = parts_of(tmp_path / "run")
    at_backward(weight, 3, lambda: [][0])
    with pytest.raises(IndexError) as stopped:
        run(parts, parts.state, Console(parts, quiet))
    assert "state after step 1 is saved" in stopped.value.__notes__[0]
    assert assemble(parts.config, quiet).state == parts.last.state


def test_stop_of_the_overlapped_loop_keeps_the_batch_that_was_sampled(tmp_path):
    ahead = {
        "run": {"ahead": 1},
        "objective": {"importance": "token_truncate"},
        "evaluate": {"profile_prompts": 0},
    }
    config = config_of(tmp_path / "whole", **ahead)
    train(config, show=quiet)
    config = config_of(tmp_path / "run", **ahead)
    with plan("train", 2 * STEP + 5, lambda: send(signal.SIGINT)), pytest.raises(KeyboardInterrupt):
        train(config, show=quiet)
    train(config, show=quiet)
    got, wanted = result_of(tmp_path / "run"), result_of(tmp_path / "whole")
    assert got[0] == wanted[0]
    assert all(torch.equal(got[1][name], tensor) for name, tensor in wanted[1].items())


def test_diverged_weights_are_an_error_that_names_the_step(tmp_path, capsys):
    diverging = {"lr": 1e25, "schedule": "constant", "max_grad_norm": 1e9}
    config = config_of(tmp_path / "run", optim=diverging, checkpoint={"every": 1}, run={"steps": 8})
    with pytest.raises(FloatingPointError, match=r"step \d+: ") as stopped:
        train(config, show=quiet)
    assert "step_0000000" in stopped.value.__notes__[0]
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        model = AutoModelForCausalLM.from_pretrained(path)
        assert all(torch.isfinite(p).all() for p in model.parameters())


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Writing beyond fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "samples.jsonl"])
def test_full_disk_names_the_file_and_leaves_what_was_there(name, whole, tmp_path):
    directory = tmp_path / "run"
    train(config_of(directory, run={"steps": 2}), show=quiet)
    saved = {p.name: p.stat().st_size for p in (directory / "checkpoints" / "step_00000002").iterdir()}
    room = {
        "model.safetensors": saved["model.safetensors"] // 2,
        "optimizer.pt": (saved["model.safetensors"] + saved["optimizer.pt"]) // 2,
        "samples.jsonl": (directory / "samples.jsonl").stat().st_size + 100,
    }[name]
    logs = [directory / "metrics.jsonl", directory / "samples.jsonl"]
    before = [log.read_text() for log in logs]
    with files_up_to(room), pytest.raises(WriteError, match=rf"{name} could not be written"):
        train(config_of(directory, checkpoint={"every": 1}), show=quiet)
    assert all(log.read_text().startswith(text) for log, text in zip(logs, before, strict=True))
    assert sorted(p.name for p in (directory / "checkpoints").iterdir()) == ["step_00000000", "step_00000002"]
    train(config_of(directory), show=quiet)
    # The learning rate of a run of 2 steps falls faster, so only what does not depend on it is compared.
    assert [r["step"] for r in result_of(directory)[0]] == [r["step"] for r in whole[0]]


def test_statuses_of_the_command_line(tmp_path, capsys):
    config = tmp_path / "tiny.toml"
    config.write_text(toml_of(config_of(tmp_path / "run")))
    arguments = ["train", str(config)]
    for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        with plan("train", PROFILE + 5 if status == 130 else 5, lambda number=number: send(number)):
            assert main(arguments) == status
        (said,) = [s for s in capsys.readouterr().err.splitlines() if s.startswith("g2rpo-fast: ")]
        assert "is saved in" in said
        assert said.endswith(f"; to continue from it: g2rpo-fast train --run.dir {tmp_path / 'run'}")
    with plan("train", 5, lambda: 1 / 0):
        assert main(arguments) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert main(arguments) == 0


def toml_of(config: Config) -> str:
    """The keys that differ from the defaults."""
    from dataclasses import asdict

    default = asdict(Config())
    lines = []
    sections = asdict(config)
    for name in section_types():
        section = sections[name]
        lines.append(f"[{name}]")
        lines += [
            f"{key} = {json.dumps(value)}"
            for key, value in section.items()
            if value != default[name][key] and value is not None
        ]
    return "\n".join(lines)


def constant(response: str, answer: str, rollout: Rollout) -> float:
    return 1.0


def test_run_without_any_signal_says_so(tmp_path, capsys):
    config = tmp_path / "tiny.toml"
    silent = {"reward": {"functions": ["test_stopping:constant"]}, "evaluate": {"every": 0}}
    config.write_text(toml_of(config_of(tmp_path / "run", **silent)))
    for steps, status in ((SIGNAL_STEPS - 1, 0), (SIGNAL_STEPS, 3)):
        assert main(["train", str(config), "--run.steps", str(steps)]) == status
        assert "no step had a reward difference to learn from" in capsys.readouterr().out
