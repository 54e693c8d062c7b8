"""`g2rpo-fast report`: runs side by side on one HTML page, once or while they go on."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import tyro

from g2rpo_fast.files import write_text
from g2rpo_fast.usage import refused_in_one_line

LOOK_S = 2.0
"""Between two looks at the runs' files."""
RELOAD_S = 5.0
"""Between two loads of a live page."""


def run(words: Sequence[str]) -> int:
    def report(
        runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(help="run directories")],
        /,
        *,
        out: Annotated[
            Path | None,
            tyro.conf.arg(help="the page; RUN/report.html for one run, report.html here for several"),
        ] = None,
        live: Annotated[
            bool, tyro.conf.arg(help="write it anew whenever a run gets on, until Ctrl-C")
        ] = False,
    ) -> None:
        """One HTML page of one run or several: charts, samples, configuration. It needs no network."""
        if find_spec("matplotlib") is None:
            raise ValueError("report: wanted matplotlib, which is not there: pip install g2rpo-fast[report]")
        file = out or (runs[0] / "report.html" if len(runs) == 1 else Path("report.html"))
        if out and not out.parent.is_dir():
            raise ValueError(f"--out: wanted a file in a folder that is there, got {out}")
        if live:
            follow(runs, file)
        else:
            write(runs, file)
            print(f"report: {file}")

    with refused_in_one_line():
        tyro.cli(report, args=list(words), prog="g2rpo-fast report")
    return 0


def write(
    directories: Sequence[Path], file: Path, *, reload_s: float | None = None, told: bool = False
) -> None:
    """`told`: the user knows what takes some seconds here.

    Raises ValueError for what is no run, WriteError for the page.
    """
    from g2rpo_fast.report import page, read_runs

    runs = read_runs(directories)
    if not told and sys.stderr.isatty():
        print(f"drawing {len(runs)} runs ...", file=sys.stderr)
    write_text(file, page(runs, reload_s=reload_s))


def follow(directories: Sequence[Path], file: Path) -> None:
    """Until KeyboardInterrupt; then the page is written once more, and no longer loads itself."""
    seen: list[tuple[int, int]] = []
    told = False
    try:
        while True:
            now = [_state(path) for path in directories]
            if now != seen:
                write(directories, file, reload_s=RELOAD_S, told=told)
                seen = now
            if not told:
                print(f"report: open {file}; it follows the runs until Ctrl-C", flush=True)
                told = True
            time.sleep(LOOK_S)
    except KeyboardInterrupt as stop:
        write(directories, file, told=True)
        stop.add_note(f"the page as it is now is in {file}")
        raise


def _state(directory: Path) -> tuple[int, int]:
    """Size and time of what grows."""
    file = directory / "metrics.jsonl"
    if not file.exists():
        return (0, 0)
    found = file.stat()
    return (found.st_size, found.st_mtime_ns)
