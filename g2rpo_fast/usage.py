"""What the command line tells a user: its presets, a mistyped word in one line, a fault of the program."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Iterator, Sequence
from importlib import resources
from itertools import groupby

FAULT = (
    "This is a fault of g2rpo-fast: please report it, with the lines above, where you got the program from"
)
OPTION = r"--[a-z][\w.-]*"


def preset_names() -> list[str]:
    """Names of the configurations that come with the package."""
    directory = resources.files("g2rpo_fast") / "presets"
    return sorted(p.name.removesuffix(".toml") for p in directory.iterdir() if p.name.endswith(".toml"))


def with_values(words: Sequence[str], switches: Sequence[str] = ("--data.chat",)) -> list[str]:
    """Options that may be none besides true and false, given a value where they stand alone: `--data.chat` is
    `--data.chat True`, `--data.no-chat` the opposite."""
    spelled: list[str] = []
    for place, word in enumerate(words):
        name = word.replace(".no-", ".")
        if name not in switches:
            known = spelled and spelled[-1] in switches and word in ("true", "false")
            spelled.append(word.title() if known else word)
        elif name != word:
            spelled += [name, "False"]
        else:
            alone = words[place + 1 : place + 2] == [] or words[place + 1].startswith("--")
            spelled += [word, "True"] if alone else [word]
    return spelled


def print_to_pipe(text: str) -> None:
    """Whoever reads it may stop, as `head` does."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what the interpreter flushes at exit


def is_fault(error: BaseException) -> bool:
    """Whether `saved_when_stopped` or the command line took an error for a fault of the program."""
    return FAULT in getattr(error, "__notes__", ())


@contextlib.contextmanager
def refused_in_one_line() -> Iterator[None]:
    """Around the parser, which writes a box to standard error and exits with status 2."""
    box, line = io.StringIO(), None
    try:
        with contextlib.redirect_stderr(box):
            yield
    except SystemExit as stop:
        if stop.code:
            line = f"g2rpo-fast: {_of_section(stop) or _of_box(box.getvalue())}\n"
        raise
    finally:
        sys.stderr.write(box.getvalue() if line is None else line)


def _of_section(stop: SystemExit) -> str | None:
    """The message of the section that refused a value, as it was before it was wrapped to fit the box."""
    cause: BaseException | None = stop
    while cause is not None:
        if type(cause) is ValueError and re.match(r"\w+\.\w+", str(cause)):
            return str(cause)
        cause = cause.__context__
    return None


def _of_box(box: str) -> str:
    """Its first part, and the options that it suggests. Its edges and colours depend on the terminal."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)
    lines = [line.strip(" │") for line in plain.splitlines() if not line.startswith(("╭", "╰"))]
    parts = [" ".join(part) for rule, part in groupby(lines, key=_is_rule) if not rule]
    said, *more = parts if plain.startswith("╭") else parts[1:]
    said = said.strip().removeprefix("Error parsing ").rstrip(".")
    if more and more[0].startswith("Perhaps you meant"):
        said += f"; perhaps you meant {' or '.join(re.findall(OPTION, more[0]))}"
    return f"{said}; --help lists every option"


def _is_rule(line: str) -> bool:
    return bool(line) and not line.strip("─-")
