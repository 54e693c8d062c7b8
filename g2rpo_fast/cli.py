"""The command line: `g2rpo-fast COMMAND`, whose modules are in `commands`.

PyTorch and transformers take seconds to import. So each command imports what it needs when it runs: usage and
mistyped commands are answered at once, and Ctrl-C while a run loads ends it like at any other moment.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

from g2rpo_fast.commands import COMMANDS
from g2rpo_fast.interrupts import Terminated
from g2rpo_fast.own import PieceError
from g2rpo_fast.usage import FAULT, is_fault, preset_names

if TYPE_CHECKING:
    from g2rpo_fast.config import Config

_COMMANDS = "\n       ".join(f"g2rpo-fast {name} {words}" for name, words in COMMANDS.items())
_USAGE = f"""usage: {_COMMANDS}

CONFIG is a TOML file or a preset ({", ".join(preset_names())}); without one, the embedded default runs:
nothing is downloaded, it takes a few minutes on a CPU and shows its learning curve.
`g2rpo-fast train --help` lists every key. `methods` lists the published methods and what of them runs here,
or explains one; `plan` says what a run takes before it begins; `metrics` says what the numbers of a run mean,
`report` draws runs side by side."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point. Returns the exit status:

    0     done
    1     the run stopped with an error; what it was is saved as far as it can be, and the message says where
    2     bad usage: nothing was spent
    3     done, but no step had a reward difference to learn from (of `train.SIGNAL_STEPS` or more)
    130   Ctrl-C; likewise saved
    143   SIGTERM; likewise saved
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(_USAGE)
        return 0
    if words[0] in ("-V", "--version"):
        print(f"g2rpo-fast {version('g2rpo-fast')}")
        return 0
    if words[0] not in COMMANDS:
        print(f"g2rpo-fast: unknown command {words[0]!r}\n{_USAGE}", file=sys.stderr)
        return 2
    try:
        return importlib.import_module(f"g2rpo_fast.commands.{words[0]}").run(words[1:])
    except KeyboardInterrupt as stop:
        ended = isinstance(stop, Terminated)
        _tell("stopped by SIGTERM" if ended else "stopped by Ctrl-C", stop)
        return 143 if ended else 130
    except Exception as error:
        status = _status_of(error)
        if status is None:
            raise
        return status


def _status_of(error: Exception) -> int | None:
    """Tells in a line what a run may meet. None: a fault of the program, which has a note that says so."""
    if is_fault(error):
        return None
    if isinstance(error, ValueError) and not isinstance(error, PieceError):
        status = 2
    else:
        from g2rpo_fast.safekeeping import STOPS

        if not isinstance(error, STOPS):
            error.add_note(FAULT)
            return None
        status = 1
    _tell(str(error), error)
    return status


def _tell(message: str, error: BaseException) -> None:
    """One line: what happened, and where the run is saved."""
    print(f"g2rpo-fast: {'. '.join((message, *getattr(error, '__notes__', ())))}", file=sys.stderr)


def read_arguments(words: Sequence[str]) -> Config:
    """`[CONFIG] [--method NAME] [--section.key value ...]` as a Config. Exits with typed help on --help or a
    bad option."""
    from g2rpo_fast.config.arguments import read_arguments

    return read_arguments(words)


if __name__ == "__main__":
    sys.exit(main())
