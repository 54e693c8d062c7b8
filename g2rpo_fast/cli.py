"""The command line: `g2rpo-fast train [CONFIG] [--section.key value ...]`, `g2rpo-fast bench --table`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import tyro
from transformers.utils import logging as transformers_logging
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from g2rpo_fast.bench_plots import render_plots
from g2rpo_fast.bench_table import render_results
from g2rpo_fast.config import EMBEDDED, NONE_WORDS, Config, load_config, preset_names
from g2rpo_fast.rewards import RewardError
from g2rpo_fast.train import train
from g2rpo_fast.types import EngineError

_USAGE = f"""usage: g2rpo-fast train [CONFIG] [--section.key value ...]
       g2rpo-fast bench --table [--results DIR]
       g2rpo-fast bench --plots DIR [--results DIR]

CONFIG is a TOML file or a preset ({", ".join(preset_names())}); without one, the embedded default runs:
nothing is downloaded, it takes a few minutes on a CPU and shows its learning curve.
`g2rpo-fast train --help` lists every key. `bench` shows or draws the benchmark records of a directory."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point. Returns the exit status: 0 done, 1 the run stopped with an error, 2 bad usage."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(_USAGE)
        return 0
    if words[0] not in COMMANDS:
        print(f"g2rpo-fast: unknown command {words[0]!r}\n{_USAGE}", file=sys.stderr)
        return 2
    try:
        COMMANDS[words[0]](words[1:])
    except ValueError as error:
        print(f"g2rpo-fast: {error}", file=sys.stderr)
        return 2
    except (RewardError, EngineError, FloatingPointError) as error:
        print(f"g2rpo-fast: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("g2rpo-fast: stopped; the same command with this run's --run.dir continues it", file=sys.stderr)
        return 1
    return 0


def run_train(words: Sequence[str]) -> None:
    transformers_logging.disable_progress_bar()
    train(read_arguments(words))


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
        registry=_registry(),
    )


def _registry() -> ConstructorRegistry:
    """Reads `none` where a key may be None, as the help writes it."""
    registry = ConstructorRegistry()

    @registry.primitive_rule
    def none(kind: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[None] | None:
        if kind.type is not type(None):
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="none",
            instance_from_str=lambda words: None,
            is_instance=lambda value: value is None,
            str_from_instance=lambda value: ["none"],
            choices=NONE_WORDS,
        )

    return registry


def run_bench(words: Sequence[str]) -> None:
    def bench(
        *,
        table: Annotated[bool, tyro.conf.arg(help="show the records as tables")] = False,
        plots: Annotated[Path | None, tyro.conf.arg(help="where to write growth.svg and speedup.svg")] = None,
        results: Annotated[Path, tyro.conf.arg(help="where they are")] = Path("benchmarks/results"),
    ) -> None:
        """Benchmark records. They are measured by `pytest benchmarks/ --benchmark`."""
        if not table and plots is None:
            raise ValueError("bench: wanted --table or --plots DIR, got none")
        if table:
            print(render_results(results))
        if plots is not None:
            print("\n".join(map(str, render_plots(results, plots))))

    tyro.cli(bench, args=list(words), prog="g2rpo-fast bench")


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {"train": run_train, "bench": run_bench}


if __name__ == "__main__":
    sys.exit(main())
