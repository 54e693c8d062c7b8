"""`benchmarks/results/*.json` as plots: how an update's cost grows, and what sharing gains by token ratio."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

Record = Mapping[str, Any]
Case = Mapping[str, Any]
SIDES = {"tree_update": "prefix tree", "padded_update": "padded rows"}
COSTS: dict[str, Callable[[Case], float]] = {
    "CPU seconds": lambda side: side["median_cpu_s"],
    "peak memory, MiB": lambda side: side["peak_above_base_mib"],
}
AXES = {
    "prompt": "prompt tokens",
    "group": "group size G",
    "prompts": "prompts P",
    "completion": "completion tokens",
}


def render_plots(results: Path, directory: Path) -> list[Path]:
    """Writes `growth.svg` and `speedup.svg` to `directory` and returns their paths.

    Raises:
        ValueError: matplotlib is not installed; the results hold no record of growth (`bench_growth.py`).
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("--plots: wanted matplotlib (pip install g2rpo-fast[bench]), got no such package")
    records = [json.loads(file.read_text()) for file in sorted(results.glob("*.json"))]
    sweeps = [record for record in records if "varied" in record["figures"]]
    if not sweeps:
        raise ValueError(f"--results: wanted records of benchmarks/bench_growth.py, got none in {results}")
    directory.mkdir(parents=True, exist_ok=True)
    paths = [directory / "growth.svg", directory / "speedup.svg"]
    _growth(sweeps, paths[0])
    _speedup(sweeps, records, paths[1])
    return paths


def _growth(sweeps: Sequence[Record], path: Path) -> None:
    """A column for each quantity varied and one for S over all points; time above, memory below."""
    from matplotlib.figure import Figure

    columns = [(AXES[s["figures"]["varied"]], s["figures"]["varied"], s["figures"]["cases"]) for s in sweeps]
    every = sorted((case for _, _, cases in columns for case in cases), key=lambda case: case["positions"])
    columns.append(("stream positions S, all points", "positions", every))
    figure = Figure(figsize=(3.2 * len(columns), 6), layout="constrained")
    panels = figure.subplots(len(COSTS), len(columns), squeeze=False, sharey="row")
    for row, (unit, cost) in zip(panels, COSTS.items(), strict=True):
        for panel, (label, key, cases) in zip(row, columns, strict=True):
            at = [case[key] for case in cases]
            line = "" if key == "positions" else "-"
            for side, name in SIDES.items():
                costs = [cost(case[side]) for case in cases]
                panel.plot(at, costs, f"o{line}", label=f"{name}: slope {slope(at, costs):.2f}")
            _logarithmic(panel)
            panel.set_xlabel(label)
            panel.legend(fontsize="small")
        row[0].set_ylabel(unit)
    figure.suptitle(f"Cost of an update ({_source(sweeps[0])})", fontsize="medium")
    _save(figure, path)


def _speedup(sweeps: Sequence[Record], records: Sequence[Record], path: Path) -> None:
    """Updates and attention, over the same rows unshared; the line is a gain equal to the token ratio."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.5), layout="constrained")
    panel = figure.subplots()
    series = {
        f"update, {AXES[sweep['figures']['varied']]} varied": [
            (case["token_ratio"], case["cpu_time_ratio"]) for case in sweep["figures"]["cases"]
        ]
        for sweep in sweeps
    }
    attention = list(_attention(records))
    series |= {
        f"attention alone, {side}": [point for name, *point in attention if name == side]
        for side in dict.fromkeys(name for name, *_ in attention)
    }
    for (name, points), marker in zip(series.items(), "osD^vPX*hp<>" * len(series), strict=False):
        panel.plot(*zip(*points, strict=True), marker, label=name, markersize=5)
    ratios = [point[0] for points in series.values() for point in points]
    panel.plot([1, max(ratios)], [1, max(ratios)], "--", color="grey", label="gain = token ratio")
    panel.axhline(1, color="grey", linewidth=0.5)
    _logarithmic(panel)
    panel.set_ylabel("speed-up over unshared rows")
    panel.set_xlabel("token ratio: tokens without sharing / stream positions S")
    panel.legend(fontsize="small")
    panel.set_title(f"What sharing gains ({_source(sweeps[0])})", fontsize="medium")
    _save(figure, path)


def _attention(records: Sequence[Record]) -> Iterator[tuple[str, float, float]]:
    """(implementation, token ratio, speed-up of forward and backward) of the records of tree attention."""
    for record in records:
        figures = record["figures"]
        if record["name"].startswith("tree_attention") and "token_ratio" in figures:
            for side in figures["sides"]:
                if side["side"] != "unshared":
                    yield side["side"], figures["token_ratio"], side["speedup"]


def slope(at: Sequence[float], costs: Sequence[float]) -> float:
    """Exponent k of cost ~ at^k, by least squares of the logarithms. nan for fewer than two places."""
    x, y = ([math.log(value) for value in values] for values in (at, costs))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    spread = sum((a - mean_x) ** 2 for a in x)
    if spread == 0:
        return math.nan
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread


def _logarithmic(panel: Any) -> None:
    """Both axes, with plain numbers at 1, 2 and 5 times the powers of ten."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    panel.set(xscale="log", yscale="log")
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_locator(NullLocator())


def _source(record: Record) -> str:
    return f"{record['machine']['cpu']}, torch {record['versions']['torch']}, commit {record['commit']}"


def _save(figure: Any, path: Path) -> None:
    """The same records give the same bytes."""
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": "g2rpo-fast"}):
        figure.savefig(path, metadata={"Date": None})
