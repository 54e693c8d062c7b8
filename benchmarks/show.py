"""Shows the benchmark records that `pytest benchmarks/ --benchmark` writes.

python benchmarks/show.py --table            as tables
python benchmarks/show.py --plots DIR        as DIR/growth.svg and DIR/speedup.svg
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from record_plots import render_plots
from record_tables import render_results


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--table", action="store_true", help="show the records as tables")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="where to write growth.svg and speedup.svg")
    parser.add_argument("--results", type=Path, metavar="DIR", default=Path(__file__).parent / "results")
    asked = parser.parse_args(arguments)
    if not asked.table and asked.plots is None:
        parser.error("wanted --table or --plots DIR, got none")
    try:
        if asked.table:
            print(render_results(asked.results))
        if asked.plots is not None:
            print("\n".join(map(str, render_plots(asked.results, asked.plots))))
    except ValueError as error:
        print(f"show.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
