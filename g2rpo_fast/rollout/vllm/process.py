"""The engine process as the trainer sees it: started, asked, watched, killed."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from g2rpo_fast.rollout.vllm.channel import Channel, PeerDead
from g2rpo_fast.rollout.vllm.liveness import Watch
from g2rpo_fast.rollout.vllm.messages import Launch
from g2rpo_fast.rollout.vllm.shared_files import SHARED, mapped_files
from g2rpo_fast.types import EngineError

HOST = f"{__package__}.host"
_TAIL_LINES = 15
_TAIL_BYTES = 8192
_CLOSE_S = 10.0
_DYING_S = 10.0
"""From a closed socket to an exit status, on a busy machine."""
_WORKERS_S = 60.0
"""A worker of vLLM takes ten seconds to end, more on a busy machine."""


class EngineHung(EngineError):
    """The process lives and gets nowhere."""


class EngineProcess:
    """One engine process and the way to talk to it.

    Args:
        environment: variables laid over this process's own.
        log_path: its output is appended there.
        silent_s: longest time without any sign of life.
        module: what it runs, with the file descriptors of its ends and this process's number.
    """

    def __init__(
        self,
        launch: Launch,
        environment: Mapping[str, str],
        log_path: Path,
        *,
        silent_s: float,
        module: str = HOST,
    ) -> None:
        self._others = set(SHARED.iterdir()) if SHARED.is_dir() else set()
        self._shared: set[Path] = set()
        ours, theirs = socket.socketpair()
        beats, heart = os.pipe()
        with_environment = ["env", *(f"{name}={value}" for name, value in environment.items())]
        ends = [theirs.fileno(), heart]
        with log_path.open("ab") as log:
            self._log_path, self._log_start = log_path, log.tell()
            self._process = subprocess.Popen(
                [*with_environment, sys.executable, "-m", module, *map(str, ends), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=ends,
                start_new_session=True,
            )
        theirs.close()
        os.close(heart)
        self.pid = self._process.pid
        self._watch = Watch(self.pid, beats, silent_s)
        self._channel = Channel(ours)
        self._channel.send(launch)

    def ready(self, idle_s: float) -> None:
        """Waits until vLLM is built. Raises EngineError."""
        self._watch.begin(idle_s)
        self._answer("start")
        self._note_shared()

    def request(
        self, command: str, *, phase: str, idle_s: float, moved: bool = True, **arguments: Any
    ) -> Any:
        """Sends a command and waits for its answer, however long the process is at work on it.

        `idle_s`: longest time that it may do nothing; `liveness.py` says what else is too long. Unless the
        last request `moved` anything, its time counts too. Raises EngineError naming `phase`.
        """
        if moved:
            self._watch.begin(idle_s)
        try:
            self._look(phase)
            self._channel.send((command, arguments), partial(self._look, phase))
        except PeerDead as error:
            raise self._dead(phase) from error
        return self._answer(phase)

    def _answer(self, phase: str) -> Any:
        try:
            outcome, value = self._channel.receive(partial(self._look, phase))
        except PeerDead as error:
            raise self._dead(phase) from error
        if outcome == "failed":
            raise EngineError(f"vLLM engine failed in {phase} (process {self.pid}): {value}{self._tail()}")
        return value

    def _look(self, phase: str) -> None:
        """Raises EngineHung, or PeerDead where a worker of a dead process still holds its socket."""
        if self._process.poll() is not None and not self._channel.readable:
            raise PeerDead
        why = self._watch.look()
        if why is not None:
            raise EngineHung(f"vLLM engine hangs in {phase} (process {self.pid}): {why}{self._tail()}")

    def _dead(self, phase: str) -> EngineError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_DYING_S)
        code = self._process.returncode
        ended = f"ended by {signal.Signals(-code).name}" if code and code < 0 else f"exit status {code}"
        return EngineError(f"vLLM engine died in {phase} (process {self.pid}, {ended}){self._tail()}")

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
        self._note_shared()
        self._hang_up()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_CLOSE_S)
        self.kill()

    def kill(self) -> None:
        """Ends it now. Its workers notice, and clean up in their own time: see `wait_gone`."""
        self._note_shared()
        self._hang_up()
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGCONT)  # stopped workers could not notice

    def _hang_up(self) -> None:
        self._channel.close()
        self._watch.close()

    def wait_gone(self) -> None:
        """Returns when its workers have ended too; those that do not are killed. What a killed one could not
        remove of its shared memory is removed."""
        if not self._gone_within(_WORKERS_S):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self._gone_within(_DYING_S)
        for file in self._shared:
            file.unlink(missing_ok=True)

    def _note_shared(self) -> None:
        """Its shared memory, while its processes are there to tell; not what others had before it began."""
        self._shared |= mapped_files(self.pid) - self._others

    def _gone_within(self, seconds: float) -> bool:
        until = time.monotonic() + seconds
        while self._group_lives() and time.monotonic() < until:
            time.sleep(0.02)
        return not self._group_lives()

    def _group_lives(self) -> bool:
        """Whether any process of its session's group is left; the group's number is its pid."""
        try:
            os.killpg(self.pid, 0)
        except (ProcessLookupError, PermissionError):
            return False
        return True
