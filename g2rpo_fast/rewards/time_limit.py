"""A time limit for code that is not ours: a thread watches the clock and interrupts what runs too long.

In the main thread the interruption is a signal, whose handler raises `Overrun` in the code that runs there,
also out of a sleep or a wait for a socket, a lock or a process. In another thread it is an asynchronous
exception, which Python raises at its next instruction. Neither can end one long call into C that does not
look for signals: the watchdog then says on stderr what is running.
"""

from __future__ import annotations

import ctypes
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, TypeVar

T = TypeVar("T")
SIGNAL = getattr(signal, "SIGRTMAX", signal.SIGUSR2)
"""One that no library is known to use; SIGALRM is for the limits of the user's own libraries."""
GRACE_S = 5.0
"""After the limit, before the watchdog says that nothing helps."""


class Overrun(BaseException):
    """The limit has passed. No Exception: code that catches those must not go on."""


class Watchdog:
    """While open, `call` bounds what it calls. `limit_s` None = no limit, no thread."""

    def __init__(self, limit_s: float | None) -> None:
        self.limit_s = limit_s
        self._running: str | None = None
        self._since = 0.0
        self._ident = 0
        self._told = False
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._previous: Any = None
        self._handles = False

    def __enter__(self) -> Watchdog:
        if self.limit_s is not None:
            self._handles = threading.current_thread() is threading.main_thread()
            if self._handles:
                self._previous = signal.signal(SIGNAL, self._raise)
            threading.Thread(target=self._watch, name="reward-watchdog", daemon=True).start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._closed.set()
        if self._handles and self._previous is not None:
            signal.signal(SIGNAL, self._previous)

    def call(self, name: str, work: Callable[[], T]) -> T:
        """`work()`. Raises Overrun when it takes longer than the limit. `name`: what it is, to be told."""
        if self.limit_s is None:
            return work()
        try:
            try:
                self._arm(name)
                value = work()
                if time.monotonic() - self._since > self.limit_s:
                    raise Overrun
                return value
            finally:
                self._disarm()
        except Overrun:  # it may have come in the middle of disarming
            self._disarm()
            raise

    def extend(self) -> None:
        """What runs is well: the limit counts from now."""
        self._since = time.monotonic()

    def _arm(self, name: str) -> None:
        self._ident, self._since, self._told = threading.get_ident(), time.monotonic(), False
        self._running = name

    def _disarm(self) -> None:
        self._running = None  # from here on the handler raises nothing
        if not self._by_signal():
            with self._lock:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._ident), None)

    def _by_signal(self) -> bool:
        return self._handles and self._ident == threading.main_thread().ident

    def _raise(self, number: int, frame: FrameType | None) -> None:
        if self._running is not None:
            raise Overrun

    def _watch(self) -> None:
        assert self.limit_s is not None
        while not self._closed.wait(min(self.limit_s / 4, 1.0)):
            with self._lock:
                name, over_s = self._running, time.monotonic() - self._since - self.limit_s
                if name is None or over_s <= 0:
                    continue
                if self._by_signal():
                    signal.pthread_kill(self._ident, SIGNAL)
                else:
                    overrun = ctypes.py_object(Overrun)
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._ident), overrun)
            if over_s > GRACE_S and not self._told:
                self._told = True
                print(
                    f"warning: {name} is {over_s:.0f} s over its limit of {self.limit_s:g} s and cannot be "
                    f"interrupted (a call into C that does not return)",
                    file=sys.stderr,
                    flush=True,
                )
