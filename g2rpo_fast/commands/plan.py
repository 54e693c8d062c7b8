"""`g2rpo-fast plan [CONFIG]`: what a run takes, before it is begun."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from g2rpo_fast.commands.common import loading, note, telling_interrupts
from g2rpo_fast.progress import Progress
from g2rpo_fast.usage import print_to_pipe

if TYPE_CHECKING:
    from g2rpo_fast.config import Config

HELP = """usage: g2rpo-fast plan [CONFIG] [--seconds S] [--response-tokens N] [--json] [options of train]

What a run with this configuration takes: work, memory, time, disk. It is set up as `train` would, refused
where that would refuse it, and calibrated on some of its first step. Nothing of it is kept.

  --seconds S          to spend on the calibration, about (20)
  --response-tokens N  mean length of responses; without it what the model says in the calibration
  --json               for programs: bytes and seconds

`g2rpo-fast train --help` lists the options of train."""


@dataclass(frozen=True)
class PlanOptions:
    seconds: float = 20.0
    response_tokens: float | None = None
    json: bool = False


def run(words: Sequence[str]) -> int:
    if {"-h", "--help"} & set(words):
        print_to_pipe(HELP)
        return 0
    options, rest = _options(words)
    from g2rpo_fast.config.arguments import read_arguments
    from g2rpo_fast.paths import check_paths

    config = read_arguments(rest)
    check_paths(config)
    where = Path(config.run.dir or "runs")
    with telling_interrupts(), tempfile.TemporaryDirectory(prefix="g2rpo-plan-") as directory:
        loading("g2rpo_fast.forecast")
        _plan(_alone(config, directory), options, where)
    return 0


def _options(words: Sequence[str]) -> tuple[PlanOptions, list[str]]:
    """This command's own options, and the others."""
    found, rest, words = PlanOptions(), [], list(words)
    while words:
        name, joined, value = words.pop(0).partition("=")
        if name == "--json":
            found = replace(found, json=True)
        elif name in ("--seconds", "--response-tokens"):
            given = value if joined else words.pop(0) if words else ""
            found = replace(found, **{name[2:].replace("-", "_"): _positive(name, given)})
        else:
            rest.append(name + joined + value)
    return found, rest


def _positive(name: str, word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ValueError(f"{name}: wanted a number above 0, got {word or 'nothing'}")
    return value


def _alone(config: Config, directory: str) -> Config:
    """The run in a directory of its own, told to no logger."""
    return replace(
        config,
        run=replace(config.run, dir=directory, fork=None),
        log=replace(config.log, to=()),
    )


def _plan(config: Config, options: PlanOptions, where: Path) -> None:
    from contextlib import closing

    from g2rpo_fast.assemble import assemble
    from g2rpo_fast.forecast import forecast
    from g2rpo_fast.forecast.limits import disk_bytes, memory_bytes
    from g2rpo_fast.forecast.show import as_text

    with closing(assemble(config, note)) as parts:
        with Progress().phase("calibrating"):
            found = forecast(
                parts, seconds=options.seconds, response_tokens=options.response_tokens, trial=True
            )
        free, disk = memory_bytes(parts.learner.model.device), disk_bytes(where)
    if options.json:
        values = asdict(found)
        values["memory"]["peak"], values["disk"]["run"] = found.memory.peak, found.disk.run
        values["time"] |= {"step_s": found.time.step_s, "run_s": found.time.run_s}
        print_to_pipe(json.dumps({**values, "free": {"memory": free, "disk": disk}}, indent=1))
    else:
        print_to_pipe(as_text(found, parts.config, free=free, disk_free=disk))
