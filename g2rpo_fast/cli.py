"""The command line: `g2rpo-fast train [CONFIG] [--section.key value ...]`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import tyro
from transformers.utils import logging as transformers_logging

from g2rpo_fast.config import EMBEDDED, Config, load_config, preset_names
from g2rpo_fast.rewards import RewardError
from g2rpo_fast.train import train

_USAGE = f"""usage: g2rpo-fast train [CONFIG] [--section.key value ...]

CONFIG is a TOML file or a preset ({", ".join(preset_names())}); without one, the embedded default runs:
nothing is downloaded, it takes a few minutes on a CPU and shows its learning curve.
`g2rpo-fast train --help` lists every key."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point. Returns the exit status: 0 done, 1 the run stopped with an error, 2 bad usage."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(_USAGE)
        return 0
    if words[0] != "train":
        print(f"g2rpo-fast: unknown command {words[0]!r}\n{_USAGE}", file=sys.stderr)
        return 2
    transformers_logging.disable_progress_bar()
    try:
        config = read_arguments(words[1:])
        train(config)
    except ValueError as error:
        print(f"g2rpo-fast: {error}", file=sys.stderr)
        return 2
    except RewardError as error:
        print(f"g2rpo-fast: {error}", file=sys.stderr)
        return 1
    return 0


def read_arguments(words: Sequence[str]) -> Config:
    """`[CONFIG] [--section.key value ...]` as a Config. Exits with typed help on --help or a bad option."""
    source, options = EMBEDDED, list(words)
    if options and not options[0].startswith("-"):
        source = options.pop(0)
    return tyro.cli(
        Config,
        args=options,
        default=load_config(source),
        prog="g2rpo-fast train [CONFIG]",
        description=f"Train; values start from {source}.",
    )


if __name__ == "__main__":
    sys.exit(main())
