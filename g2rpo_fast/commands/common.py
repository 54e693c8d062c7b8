"""What the commands around a trained model have in common: their first words, and what they tell."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from g2rpo_fast.interrupts import Interrupts
from g2rpo_fast.progress import Progress


def names_and_options(
    command: str, words: Sequence[str], names: Sequence[str]
) -> tuple[list[str], list[str]]:
    """The words that stand first, one for each of `names`, and the options after them. With --help among the
    options they may be missing.

    Raises:
        ValueError: too few, or too many.
    """
    first = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    given, options = list(words[:first]), list(words[first:])
    if len(given) < len(names) and not {"-h", "--help"} & set(options):
        missing = " ".join(names[len(given) :])
        raise ValueError(
            f"{command}: wanted {' '.join(names)} first, then options, got no {missing}; --help tells more"
        )
    if len(given) > len(names):
        raise ValueError(f"{command}: wanted {' '.join(names)}, got also {' '.join(given[len(names) :])}")
    return given if len(given) == len(names) else [], options


def loading(*modules: str) -> None:
    """Imports what takes seconds, and says so."""
    with telling_interrupts(), Progress().phase("loading PyTorch and transformers"):
        from transformers.utils import logging as transformers_logging

        for module in modules:
            importlib.import_module(module)
    transformers_logging.disable_progress_bar()


def note(line: str) -> None:
    """To the person, not into what is printed for programs."""
    print(line, file=sys.stderr, flush=True)


@contextmanager
def telling_interrupts() -> Iterator[None]:
    """SIGTERM ends what is inside as Ctrl-C does, with its clean-up; `cli.main` tells it in a line."""
    interrupts = Interrupts(note)
    with interrupts.handled():
        yield
        interrupts.check()
