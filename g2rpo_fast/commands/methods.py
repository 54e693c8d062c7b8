"""`g2rpo-fast methods`: the published methods, or all about one."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Annotated

import tyro

from g2rpo_fast.methods import as_json, explain, find, load_methods, table
from g2rpo_fast.usage import print_to_pipe, refused_in_one_line

NOT_CUT = 10_000
"""Columns of what is no terminal, a pipe or a file, unless COLUMNS says how many."""


def run(words: Sequence[str]) -> int:
    def methods(
        name: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(help="name or arXiv id")] = None,
        /,
        *,
        json: Annotated[bool, tyro.conf.arg(help="print everything as JSON")] = False,
    ) -> None:
        """The published methods: which run here, which do not, or all about one of them."""
        catalogue = load_methods()
        width = shutil.get_terminal_size((NOT_CUT, 24)).columns
        if json:
            shown = as_json(catalogue.values() if name is None else [find(name, catalogue)])
        elif name is None:
            shown = table(catalogue, width=width)
        else:
            shown = explain(find(name, catalogue), width=width)
        print_to_pipe(shown)

    with refused_in_one_line():
        tyro.cli(methods, args=list(words), prog="g2rpo-fast methods")
    return 0
