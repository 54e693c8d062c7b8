"""Commands as the README and docs/ have them, run or checked by what would run them."""

from __future__ import annotations

import re
import shlex
import sys
import tomllib
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

from g2rpo_fast.cli import main, read_arguments
from g2rpo_fast.commands import plan
from g2rpo_fast.config import Config
from g2rpo_fast.data.reasoning_gym import PREFIX
from g2rpo_fast.data.sources import is_hub_id
from g2rpo_fast.model.gguf import PACKAGE
from g2rpo_fast.paths import check_paths

ROOT = Path(__file__).parents[2]
ON_MACHINES_OF_ALL_KINDS = {"doctor": {0, 1}}
"""Command -> exit statuses that are no mistake of the page; of all others 0 alone."""

TINY = """--run.steps 1 --run.prompts-per-step 4 --run.threads 1 --rollout.group-size 4
    --rollout.max-tokens 40 --evaluate.profile-prompts 0 --evaluate.every 0 --embedded.warm-start-steps 2
    --embedded.train-rows 64"""


def check_command(line: str) -> None:
    """Raises AssertionError or ValueError, or exits, for a command that would not run."""
    program, *words = shlex.split(line)
    assert program in PROGRAMS, f"{program}: no check of this program"
    PROGRAMS[program](words)


def check_own(words: Sequence[str]) -> None:
    """`g2rpo-fast`: what trains is read up to where PyTorch would be loaded, all else runs."""
    command, rest = words[0], list(words[1:])
    if command in ("train", "plan") and "--help" not in rest:
        check_training(command, rest)
        return
    try:
        status: int | str | None = main(list(words))
    except SystemExit as stop:
        status = stop.code or 0
    assert status in ON_MACHINES_OF_ALL_KINDS.get(command, {0}), f"exit status {status}"


def check_training(command: str, words: list[str]) -> None:
    if command == "plan":
        _, words = plan._options(words)
    config = read_arguments([word for word in words if word != "--plan"])
    missing = str(config.data.path).startswith(PREFIX) and find_spec("reasoning_gym") is None
    if not missing and not of_a_package(config):
        check_paths(config)


def of_a_package(config: Config) -> bool:
    """The model is one that a package brings, which is no part of an installation."""
    return str(config.model.path).startswith(PACKAGE)


def run_training(line: str, directory: str) -> int | None:
    """Exit status of a command that trains, cut down to a step of two small groups; None: it takes more than
    this machine has, or does not train."""
    program, *words = shlex.split(line)
    if (program, words[:1]) != ("g2rpo-fast", ["train"]) or {"--help", "--plan"} & set(words):
        return None
    config = read_arguments(words[1:])
    if str(config.data.path).startswith(PREFIX) and find_spec("reasoning_gym") is None:
        return None
    if of_a_package(config):
        return None  # tests/train/test_smollm2.py trains it, where it is installed
    if config.rollout.engine != "local" or is_hub_id(str(config.data.path)):
        return None
    if config.run.dir is not None:
        return main([*words, "--run.steps", "3"])
    return main([*words, *TINY.split(), "--run.dir", directory])


def check_make(words: Sequence[str]) -> None:
    """Targets and variables are in the Makefile."""
    text = (ROOT / "Makefile").read_text()
    for word in words:
        name, joined, _ = word.partition("=")
        wanted = rf"^{re.escape(name)} \?=" if joined else rf"^{re.escape(name)}:"
        assert re.search(wanted, text, re.MULTILINE), f"make: no {name}"


def check_pip(words: Sequence[str]) -> None:
    """One of the two packages, by name or in the checkout, or extras of the trainer."""
    assert words[0] == "install"
    if words[1:] in (["."], ["./kernels"], ["g2rpo-kernels"]):
        return  # tests/test_packaging.py builds both
    if words[1:2] == ["--no-deps"]:
        assert set(words[2:]) <= set((ROOT / "constraints.txt").read_text().splitlines()), "pip: no such pins"
        return
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for word in words[1:]:
        asked = re.fullmatch(r"g2rpo-fast\[([\w,-]+)\]", word)
        assert asked, f"pip: {word} is not of this package"
        assert set(asked[1].split(",")) <= set(extras), f"pip: no extra {asked[1]}"


def check_pytest(words: Sequence[str]) -> None:
    """Files are there, and have what `-k` asks for."""
    files = [word for word in words if word.endswith(".py")]
    assert files
    texts = "".join((ROOT / file).read_text() for file in files)
    for option, value in pairwise(words):
        assert option != "-k" or value in texts, f"pytest: nothing in {files} by {value!r}"


def check_python(words: Sequence[str]) -> None:
    """A script that is there and knows the options; the tests of examples and benchmarks run it."""
    text = (ROOT / words[0]).read_text()
    for word in words[1:]:
        assert not word.startswith("--") or f'"{word}"' in text, f"{words[0]}: no option {word}"


PROGRAMS: dict[str, Callable[[Sequence[str]], None]] = {
    "g2rpo-fast": check_own,
    "make": check_make,
    "pip": check_pip,
    "pytest": check_pytest,
    "python": check_python,
}


def forgotten(names: Sequence[str]) -> None:
    """Modules that a page wrote are no longer of this process."""
    for name in names:
        sys.modules.pop(name, None)
