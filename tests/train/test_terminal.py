"""A run in a real terminal, stopped in each of its phases: its exit status, its last line, and the cursor."""

from __future__ import annotations

import os
import pty
import re
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from g2rpo_fast.cli import main
from g2rpo_fast.metrics import read_metrics
from runs import HELPERS

SMALL = """--run.dir run --run.threads 1 --run.steps 1 --run.prompts-per-step 4 --embedded.train-rows 64
    --embedded.warm-start-steps 2 --evaluate.every 0 --evaluate.profile-prompts 0 --rollout.group-size 4
    --reward.functions runs:wobble --checkpoint.every 1"""
PHASES = {
    "loading": ("loading PyTorch", ""),
    "warm start": ("warm start", "--embedded.warm-start-steps 100000"),
    "profile": ("guidance profile, ", "--evaluate.profile-prompts 8 --evaluate.profile-samples 800"),
    "evaluation": ("evaluation", "--evaluate.every 1 --embedded.eval-rows 9000 --data.eval-rows 9000"),
    "sampling": ("step 1: sampling", "--rollout.group-size 2000"),
    "update": ("step 1: update", "--rollout.group-size 400"),
    "saving": ("run/writing_model", ""),
}
"""What is seen when it is time, and the options that make it last: a bar is shown after two seconds."""
UNSAVED = {"loading": "", "warm start": ". this was before any training: nothing is lost"}
SIGNALS = {signal.SIGINT: ("Ctrl-C", 130), signal.SIGTERM: ("SIGTERM", 143)}
SHOWN, HIDDEN = "\x1b[?25h", "\x1b[?25l"


class Terminal:
    """`g2rpo-fast train` as the leader of a terminal's session."""

    def __init__(self, words: list[str], directory: Path, **more: str) -> None:
        paths = [str(HELPERS), *filter(None, sys.path)]
        environment = (
            os.environ | {"PYTHONPATH": os.pathsep.join(paths), "TERM": "xterm", "COLUMNS": "150"} | more
        )
        command = [sys.executable, "-m", "g2rpo_fast.cli", "train", *words]
        self.screen = ""
        self.pid, self._ours = pty.fork()
        if self.pid == 0:
            try:
                signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored where the tests run in the background
                os.chdir(directory)
                os.execve(command[0], command, environment)
            finally:
                os._exit(99)

    def read(self) -> bool:
        """What is there next; False: the program has ended."""
        try:
            more = os.read(self._ours, 1 << 16)
        except OSError:  # of a terminal that no process has open any more
            more = b""
        self.screen += more.decode(errors="replace")
        return bool(more)

    def until(self, seen: Callable[[], bool]) -> None:
        while not seen():
            assert self.read(), self.screen

    def stop(self, number: signal.Signals) -> None:
        """As a person does, or a scheduler."""
        if number == signal.SIGINT:
            os.write(self._ours, b"\x03")
        else:
            os.kill(self.pid, number)

    def ended(self) -> int:
        """Its exit status; negative: ended by a signal."""
        while self.read():
            pass
        os.close(self._ours)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def stopped(phase: str, number: signal.Signals, directory: Path) -> str:
    """The last line of a run that is stopped in this phase."""
    seen, options = PHASES[phase]
    uncached = {"PYTHONPYCACHEPREFIX": str(directory / "cache")} if phase == "loading" else {}
    terminal = Terminal(shlex.split(f"{SMALL} {options}"), directory, **uncached)
    if phase == "saving":
        terminal.until(lambda: "1/1" in terminal.screen)
        while not ((directory / seen).exists() or (directory / "run" / "model").exists()):
            pass
    else:
        terminal.until(lambda: seen in terminal.screen.partition(HIDDEN)[2])
    terminal.stop(number)
    name, status = SIGNALS[number]
    assert terminal.ended() == status, terminal.screen
    screen = terminal.screen
    assert "Traceback" not in screen
    assert screen.rfind(SHOWN) >= screen.rfind(HIDDEN)
    assert HIDDEN in screen or phase == "saving"
    last = re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", screen).splitlines()[-1]
    assert f"g2rpo-fast: stopped by {name}" in last
    return last


def test_a_run_stopped_in_a_terminal_says_how_to_go_on_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = stopped("profile", signal.SIGINT, tmp_path)
    assert "the state after step 0 is saved in run/checkpoints/step_00000000; to continue from it: " in last
    monkeypatch.chdir(tmp_path)
    command = shlex.split(last.partition("to continue from it: g2rpo-fast ")[2])
    assert command == ["train", "--run.dir", "run"]
    assert main([*command, "--evaluate.profile-prompts", "0"]) == 0
    assert [record["step"] for record in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [0, 1]


@pytest.mark.slow
@pytest.mark.deep
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize("phase", PHASES)
def test_a_run_stopped_in_a_terminal_leaves_it_in_order(
    phase: str, number: signal.Signals, tmp_path: Path
) -> None:
    last = stopped(phase, number, tmp_path)
    name, _ = SIGNALS[number]
    if phase in UNSAVED:
        assert last.endswith(f"g2rpo-fast: stopped by {name}{UNSAVED[phase]}")
        assert not (tmp_path / "run").exists()
        return
    step = 1 if phase in ("update", "saving") else 0
    assert last.endswith(
        f". the state after step {step} is saved in run/checkpoints/step_{step:08d}; to continue from it: "
        "g2rpo-fast train --run.dir run"
    )
    assert (tmp_path / "run" / "model").exists() == (phase == "saving")
