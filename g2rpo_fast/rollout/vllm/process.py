"""The engine process as the trainer sees it: started, asked, timed, killed."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from g2rpo_fast.rollout.vllm.channel import Channel, PeerDead, PeerSilent
from g2rpo_fast.rollout.vllm.messages import Launch
from g2rpo_fast.types import EngineError

_TAIL_LINES = 15
_TAIL_BYTES = 8192
_CLOSE_S = 10.0
_WORKERS_S = 60.0
"""A worker of vLLM takes ten seconds to end, more on a busy machine."""


class EngineHung(EngineError):
    """The process lives and does not answer."""


class EngineProcess:
    """One engine process and the way to talk to it.

    Args:
        environment: variables laid over this process's own.
        log_path: its output is appended there.
    """

    def __init__(self, launch: Launch, environment: Mapping[str, str], log_path: Path) -> None:
        ours, theirs = socket.socketpair()
        module = f"{__package__}.host"
        with_environment = ["env", *(f"{name}={value}" for name, value in environment.items())]
        with log_path.open("ab") as log:
            self._log_path, self._log_start = log_path, log.tell()
            self._process = subprocess.Popen(
                [*with_environment, sys.executable, "-m", module, str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        theirs.close()
        self.pid = self._process.pid
        self._channel = Channel(ours)
        self._channel.send(launch)

    def ready(self, timeout_s: float) -> None:
        """Waits until vLLM is built. Raises EngineError."""
        self._answer("start", timeout_s)

    def request(self, command: str, *, phase: str, timeout_s: float, **arguments: Any) -> Any:
        """Sends a command and waits for its answer. Raises EngineError naming `phase`."""
        try:
            self._channel.send((command, arguments), timeout_s)
        except PeerDead as error:
            raise self._dead(phase) from error
        except PeerSilent as error:
            raise self._hung(phase, timeout_s) from error
        return self._answer(phase, timeout_s)

    def _answer(self, phase: str, timeout_s: float) -> Any:
        try:
            outcome, value = self._channel.receive(timeout_s)
        except PeerDead as error:
            raise self._dead(phase) from error
        except PeerSilent as error:
            raise self._hung(phase, timeout_s) from error
        if outcome == "failed":
            raise EngineError(f"vLLM engine failed in {phase} (process {self.pid}): {value}{self._tail()}")
        return value

    def _dead(self, phase: str) -> EngineError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        code = self._process.returncode
        ended = f"ended by {signal.Signals(-code).name}" if code and code < 0 else f"exit status {code}"
        return EngineError(f"vLLM engine died in {phase} (process {self.pid}, {ended}){self._tail()}")

    def _hung(self, phase: str, timeout_s: float) -> EngineHung:
        return EngineHung(
            f"vLLM engine hangs in {phase} (process {self.pid}): no answer for {timeout_s:g} s{self._tail()}"
        )

    def _tail(self) -> str:
        """The last lines of this process's log."""
        with self._log_path.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(self._log_start, size - _TAIL_BYTES))
            lines = log.read().decode(errors="replace").splitlines()[-_TAIL_LINES:]
        shown = "".join(f"\n    {line}" for line in lines)
        return f"\n  the end of {self._log_path}:{shown}" if lines else ""

    def close(self) -> None:
        """Has it end by itself, and sees to it that it does."""
        self._channel.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_CLOSE_S)
        self.kill()

    def kill(self) -> None:
        """Ends it now. Its workers notice, and clean up in their own time: see `wait_gone`."""
        self._channel.close()
        self._process.kill()
        self._process.wait()

    def wait_gone(self) -> None:
        """Returns when its workers have ended too; those that do not are killed."""
        until = time.monotonic() + _WORKERS_S
        while self._group_lives() and time.monotonic() < until:
            time.sleep(0.02)
        if self._group_lives():
            os.killpg(self.pid, signal.SIGKILL)

    def _group_lives(self) -> bool:
        """Whether any process of its session's group is left; the group's number is its pid."""
        try:
            os.killpg(self.pid, 0)
        except (ProcessLookupError, PermissionError):
            return False
        return True
