"""`g2rpo-fast metrics`: what every number means."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Annotated

import tyro

from g2rpo_fast.metric_names import explained
from g2rpo_fast.usage import print_to_pipe, refused_in_one_line

WIDEST = 110


def run(words: Sequence[str]) -> int:
    def metrics(
        name: Annotated[
            tyro.conf.Positional[str | None],
            tyro.conf.arg(help="a metric, the beginning of several, or a column of the terminal"),
        ] = None,
        /,
    ) -> None:
        """What the metrics of metrics.jsonl and the columns of the terminal mean: all, or one of them."""
        width = shutil.get_terminal_size((WIDEST, 24)).columns
        print_to_pipe(explained(name, width=min(width, WIDEST)))

    with refused_in_one_line():
        tyro.cli(metrics, args=list(words), prog="g2rpo-fast metrics")
    return 0
