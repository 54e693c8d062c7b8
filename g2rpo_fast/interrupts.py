"""Ctrl-C and SIGTERM: a run stops where it can go on from, and at once when asked a second time.

A signal raises where it arrives, except in parts that must be finished once begun (`finish_first`: an
update, a record with its state, a checkpoint); those end first. Whatever swallows the exception (a bare
`except:` in a reward function) meets it again at the end of the next such part, or by `check`.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_DEFAULT = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived."""


class Interrupts:
    """What was asked by signals while `handled` is open.

    Args:
        show: is told when a signal waits for the end of a part.
    """

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show
        self._asked: signal.Signals | None = None
        self._parts: list[str] = []
        self.at_once = False
        """A second signal came: nothing is to be saved."""

    @property
    def asked(self) -> bool:
        """Whether a signal came."""
        return self._asked is not None

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Takes both signals, where the program that calls has no handler of its own; puts the old back.

        Nothing is printed of an interrupt that Python itself swallows, as in the callbacks of weak references
        that every import has: it is met again.
        """
        replaced = {}
        if threading.current_thread() is threading.main_thread():
            replaced = {s: h for s, h in _DEFAULT.items() if signal.getsignal(s) == h}
        for number in replaced:
            signal.signal(number, self._arrived)
        told = sys.unraisablehook

        def tell_others(lost: sys.UnraisableHookArgs) -> None:
            if not isinstance(lost.exc_value, KeyboardInterrupt):
                told(lost)

        sys.unraisablehook = tell_others if replaced else told
        try:
            yield
        finally:
            sys.unraisablehook = told
            for number, handler in replaced.items():
                signal.signal(number, handler)

    @contextmanager
    def finish_first(self, part: str) -> Iterator[None]:
        """A first signal waits for the end of this block. `part`: what it is, for the message."""
        self._parts.append(part)
        try:
            yield
        finally:
            self._parts.pop()
        self.check()

    def check(self) -> None:
        """Raises what a signal asked for, unless a part is to be finished first."""
        if self._asked is not None and not self._parts and not self.at_once:
            raise self._exception(self._asked)

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        again = self._asked is not None
        self._asked = signal.Signals(number)
        if again:
            self.at_once = True
        elif self._parts:
            self._show(f"stopping after {self._parts[0]}; once more ends at once, without it")
            return
        raise self._exception(self._asked)

    @staticmethod
    def _exception(number: signal.Signals) -> KeyboardInterrupt:
        return Terminated() if number == signal.SIGTERM else KeyboardInterrupt()
