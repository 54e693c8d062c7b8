"""Commands of the program, run in this process."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from g2rpo_fast.cli import main

TOLD = re.compile(r"^.*: .*\d:\d\d so far.*\n", re.MULTILINE)


def called(words: list[str | Path], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of `g2rpo-fast` with these words. Without lines that
    tell of a phase of more than two seconds: on a machine that stalls, any may be one."""
    try:
        status = main([str(word) for word in words])
    except SystemExit as stop:
        status = int(stop.code or 0)
    out, err = capsys.readouterr()
    return status, out, TOLD.sub("", err)


def printed(words: list[str | Path], capsys: pytest.CaptureFixture[str]) -> str:
    """Standard output of what must end well."""
    status, out, err = called(words, capsys)
    assert status == 0, err
    return out


def refusal(words: list[str | Path], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line, without the program's name, of what is a user's mistake."""
    status, out, err = called(words, capsys)
    assert (status, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith("g2rpo-fast: ")
    return err.removeprefix("g2rpo-fast: ").rstrip("\n")
