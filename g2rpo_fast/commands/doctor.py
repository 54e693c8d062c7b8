"""`g2rpo-fast doctor`: what this machine can run, and what mends the rest."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Annotated

import tyro

from g2rpo_fast.doctor import Finding, examined
from g2rpo_fast.usage import print_to_pipe, refused_in_one_line

MARKS = {"ok": "  ", "absent": "- ", "wrong": "! "}


def run(words: Sequence[str]) -> int:
    """Exit status 1: something must be mended before a run."""

    def doctor(*, json: Annotated[bool, tyro.conf.arg(help="print everything as JSON")] = False) -> bool:
        """What this machine can run, what not and why, and the command that mends it."""
        return json

    with refused_in_one_line():
        as_json = tyro.cli(doctor, args=list(words), prog="g2rpo-fast doctor")
    findings = []
    for finding in examined():
        findings.append(finding)
        if not as_json:
            print_to_pipe(line_of(finding))
    wrong = [finding.name for finding in findings if finding.state == "wrong"]
    if as_json:
        print_to_pipe(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=1))
    elif wrong:
        print_to_pipe(f"To be mended before a run: {', '.join(wrong)}.")
    else:
        print_to_pipe("Ready: `g2rpo-fast train` runs here. Lines with - can be done without.")
    return 1 if wrong else 0


def line_of(finding: Finding) -> str:
    """With the command that mends it on a line of its own."""
    line = f"{MARKS[finding.state]}{finding.name:14} {finding.found}"
    return f"{line}\n{'':17}-> {finding.mend}" if finding.mend else line
