"""What a run is doing, told while it does it: how far, how fast and how much longer, of every phase of more
than two seconds.

On a terminal a bar, which is gone when the phase ends. Elsewhere (a pipe, a log) plain lines: the first after
two seconds, the next when half as much time again has passed, so that nine minutes have 14 lines and a day
27. All of it goes to standard error: a run's lines on standard output are the same with it and without.

A thread tells. What works only notes two numbers now and then: nothing waits for it, and no bit of a run
depends on it.
"""

from __future__ import annotations

import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import TextIO

FIRST_S = 2.0
"""Of a phase, until it is told."""
GROWTH = 1.5
"""Of the time at which a line is due, from line to line."""
REFRESH_S = 0.25
"""Of a bar."""


@dataclass(frozen=True)
class Progress:
    """Makes phases."""

    stream: TextIO | None = None
    """Where they are told; None = standard error, as it is then."""
    first_s: float = FIRST_S
    """Shorter phases are not told; 0: each is, once at least."""

    def phase(self, what: str, total: int = 0, unit: str = "") -> Phase:
        """One phase: a context manager around the work, which may report to it.

        Args:
            what: "evaluating", as a person reads it.
            total: units of work; 0 = not known (yet).
            unit: what is counted: "rows".
        """
        return Phase(self, what, total, unit)


class Phase:
    """What is going on, and how far it is. A `types.Report`; may be entered again for more of the same."""

    def __init__(self, progress: Progress, what: str, total: int, unit: str) -> None:
        self._progress, self._what, self._total, self._unit = progress, what, total, unit
        self._done, self._tokens = 0.0, 0
        self._began, self._ended = 0.0, threading.Event()
        self._thread: threading.Thread | None = None

    def __call__(self, done: float, *, tokens: int = 0, total: int | None = None) -> None:
        """Units done of all, parts of them too, and tokens sampled so far."""
        self._done, self._tokens = done, tokens
        if total is not None:
            self._total = total

    def __enter__(self) -> Phase:
        self._began = time.perf_counter()
        self._ended.clear()
        stream = sys.stderr if self._progress.stream is None else self._progress.stream
        self._thread = threading.Thread(target=self._tell, args=(stream,), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._thread is not None
        self._ended.set()
        self._thread.join()

    def _tell(self, stream: TextIO) -> None:
        with suppress(OSError):  # nobody reads it any more
            first_s = self._progress.first_s
            if first_s and self._ended.wait(first_s):
                return
            if stream.isatty():
                self._bar(stream)
            else:
                self._lines(stream)

    def _lines(self, stream: TextIO) -> None:
        while True:
            print(f"{self._what}: {self.told(self._elapsed())}", file=stream, flush=True)
            if self._ended.wait(max(self._elapsed(), self._progress.first_s) * (GROWTH - 1)):
                return

    def _bar(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[told]}", markup=False),
        )
        same = sys.stdout.isatty()  # the run's lines then go above the bar
        with Bar(
            *columns,
            console=Console(file=stream),
            transient=True,
            auto_refresh=False,
            redirect_stdout=same,
            redirect_stderr=same,
        ) as bar:
            task = bar.add_task(self._what, total=None, told="")

            def show() -> None:
                told = self.told(self._elapsed())
                bar.update(task, completed=self._done, total=self._total or None, told=told, refresh=True)

            show()
            while not self._ended.wait(REFRESH_S):
                show()
            show()  # what it came to, however late a busy machine let this thread run

    def _elapsed(self) -> float:
        return time.perf_counter() - self._began

    def told(self, elapsed_s: float) -> str:
        """How far, how fast, for how long, and how much longer if it goes on as it went."""
        done, total, tokens = self._done, self._total, self._tokens
        parts = [f"{done:.0f} of {total} {self._unit}"] if total else []
        if tokens:
            parts.append(f"{tokens / elapsed_s:,.0f} tokens/s")
        elif done:
            parts.append(f"{done / elapsed_s:.2g} {self._unit}/s")
        parts.append(f"{clock(elapsed_s)} so far")
        if total and done:
            parts.append(f"about {clock(elapsed_s * max(total - done, 0) / done)} left")
        return ", ".join(parts)


def clock(seconds: float) -> str:
    """0:07, 12:34 or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
