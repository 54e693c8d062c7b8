"""Is the engine at work, kept from it, or hung? Seen from outside: /proc tells of its process group, and a
thread of its own in the engine process beats once a second.

    at work    a process of the group uses CPU time
    starved    a thread of it has wanted a CPU most of the time, and got next to none
    hung       neither for `idle_s`, though the heart beats: it waits for what does not come;
               or neither and no heartbeat for `silent_s`; or one of its processes has been stopped that long;
               or it has computed for `SPIN_S` and yielded nothing

CPU time counts before the heartbeat: a call into C that keeps Python's lock stops the heart and is work. The
workers of one that spins while it waits for another look at work too, hence the last case.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

LOOK_S = 1.0
"""Least time between two looks, and between two beats."""
LONGEST_LOOK_S = 5.0
"""Most that one look adds to a silence: a trainer that was stopped itself did not see what went on."""
BUSY_SHARE = 0.05
"""Of one core, over the time allowed, in one process: idle ones of vLLM take up to 0.015 with their heart."""
STARVED_SHARE = 0.5
"""Of the time, in which a thread ran or was ready to: idle ones reach 0.06 at six times a machine's load."""
SPIN_S = 1800.0
"""Longest time that may be computed, at one core or more, without an answer or a token."""


@dataclass(frozen=True)
class Usage:
    """What a process group has used so far."""

    cpu_s: Mapping[int, float] = field(default_factory=dict)
    """By process."""
    runnable_s: Mapping[int, float] = field(default_factory=dict)
    """By thread: on a CPU or waiting for one."""
    stopped: int | None = None
    """A process that SIGSTOP or its like holds."""


def usage_of(group: int) -> Usage:
    """Of all processes in a process group or session of this number."""
    cpu_s: dict[int, float] = {}
    runnable_s: dict[int, float] = {}
    stopped = None
    for directory in Path("/proc").iterdir():
        if not directory.name.isdecimal():
            continue
        with contextlib.suppress(OSError):  # it ended meanwhile
            state, _, *rest = (directory / "stat").read_text().rpartition(")")[2].split()
            if str(group) not in rest[:2]:
                continue
            pid = int(directory.name)
            cpu_s[pid] = (int(rest[9]) + int(rest[10])) / os.sysconf("SC_CLK_TCK")
            stopped = pid if state == "T" else stopped
            for thread in (directory / "task").iterdir():
                ran, waited, _ = (thread / "schedstat").read_text().split()
                runnable_s[int(thread.name)] = (int(ran) + int(waited)) / 1e9
    return Usage(cpu_s, runnable_s, stopped)


def _since(then: Mapping[int, float], now: Mapping[int, float]) -> list[float]:
    """What each has gained; the new ones all they have."""
    return [value - then.get(key, 0.0) for key, value in now.items()] or [0.0]


class Stillness:
    """How long a group has done nothing, against the time that it may."""

    def __init__(self, limit_s: float, usage: Usage) -> None:
        self._limit_s, self._usage, self._still_s = limit_s, usage, 0.0

    def too_long(self, elapsed_s: float, usage: Usage, *, alive: bool) -> bool:
        """Takes in a look, `elapsed_s` after the last; `alive`: there was another sign that counts."""
        self._still_s += elapsed_s
        worked = max(_since(self._usage.cpu_s, usage.cpu_s)) >= BUSY_SHARE * self._limit_s
        over = self._still_s >= self._limit_s
        starved = max(_since(self._usage.runnable_s, usage.runnable_s)) >= STARVED_SHARE * self._still_s
        if alive or worked or (over and starved):
            self._usage, self._still_s = usage, 0.0
            return False
        return over


class Watch:
    """Looks at one process group, on behalf of somebody who waits for it.

    Args:
        group: the number of its process group.
        beats: the end of a pipe into which its heart beats.
        silent_s: longest time without any sign of life.
    """

    def __init__(self, group: int, beats: int, silent_s: float) -> None:
        os.set_blocking(beats, False)
        self._beats: BinaryIO = os.fdopen(beats, "rb", buffering=0)
        self._group, self._silent_s = group, silent_s
        self._beaten = False
        self.begin(silent_s)

    def begin(self, idle_s: float) -> None:
        """What was asked is new: it may be idle for `idle_s` from now on."""
        self._idle_s = idle_s
        self._looked = time.monotonic()
        self._last: Usage | None = None
        self._computed_s = self._stopped_s = 0.0

    def look(self) -> str | None:
        """Why it counts as hung, or None. Costs nothing when called again within `LOOK_S`."""
        now = time.monotonic()
        if now - self._looked < LOOK_S:
            return None
        elapsed_s, self._looked = min(now - self._looked, LONGEST_LOOK_S), now
        usage, beat = usage_of(self._group), bool(self._beats.read(1 << 16))
        last, self._last = self._last, usage
        if last is None:
            silent_s = min(self._silent_s, self._idle_s)
            self._idle, self._silent = Stillness(self._idle_s, usage), Stillness(silent_s, usage)
            return None
        return self._judge(elapsed_s, last, usage, beat)

    def _judge(self, elapsed_s: float, last: Usage, usage: Usage, beat: bool) -> str | None:
        silent_s = min(self._silent_s, self._idle_s)
        self._beaten |= beat
        self._computed_s += min(sum(_since(last.cpu_s, usage.cpu_s)), elapsed_s)
        self._stopped_s = 0.0 if usage.stopped is None else self._stopped_s + elapsed_s
        idle = self._idle.too_long(elapsed_s, usage, alive=False)
        # The heart begins to beat when the interpreter has read its modules, which a slow disk may draw out.
        silent = self._silent.too_long(elapsed_s, usage, alive=beat or not self._beaten)
        if self._stopped_s >= silent_s:
            return f"process {usage.stopped} of its group has been stopped for {silent_s:g} s"
        if silent:
            return f"no heartbeat and no CPU time used for {silent_s:g} s"
        if idle:
            return f"it lives and does nothing: no CPU time used for {self._idle_s:g} s"
        if self._computed_s >= max(SPIN_S, self._idle_s):
            return f"it has computed for {self._computed_s:.0f} s without a token or an answer"
        return None

    def close(self) -> None:
        self._beats.close()


def start_heart(end: int) -> None:
    """Beats into the pipe from a thread of its own, until nobody holds the other end."""
    os.set_blocking(end, False)

    def beat() -> None:
        while True:
            try:
                os.write(end, b".")
            except BlockingIOError:
                pass  # nobody is waiting: the pipe is full of beats
            except BrokenPipeError:
                return
            time.sleep(LOOK_S)

    threading.Thread(target=beat, name="heart", daemon=True).start()
