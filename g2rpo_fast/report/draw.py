"""Charts as SVG text, whose colours and font are the page's: light or dark is decided where it is shown."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from g2rpo_fast.report.panels import Drawn
from g2rpo_fast.report.series import Point

INK, GRID = "#010203", "#010204"
RUNS = [f"#01030{number}" for number in range(1, 9)]
"""Colours that stand for the page's."""
VARIABLES = {INK: "--soft", GRID: "--grid"} | {c: f"--run-{n}" for n, c in enumerate(RUNS, start=1)}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "g2rpo",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.formatter.limits": (-3, 4),
    "axes.formatter.use_mathtext": False,
    "axes.unicode_minus": True,
}
SIZE = (4.2, 2.35)
"""Inches; the page scales it."""
NOTHING = dict.fromkeys(("Creator", "Date", "Format", "Type"))
"""No metadata: it would name addresses and the hour."""


def svg(drawn: Drawn, *, steps: float, limits: tuple[float, float] | None) -> str:
    """One chart. `steps`: right end of the axis of steps. `limits`: of the vertical axis; None = its own."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=SIZE)
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        figure.subplots_adjust(left=0.14, right=0.975, top=0.96, bottom=0.2)
        for run, line in drawn.lines:
            _line(axes, run.number, line, marked=len(line) <= 8 or drawn.panel.sparse)
        _axes(axes, drawn, steps=steps, limits=limits)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata=NOTHING)
    return _of_the_page(file.getvalue())


def _line(axes: Axes, number: int, line: Sequence[Point], *, marked: bool) -> None:
    colour, x = RUNS[number - 1], [p.x for p in line]
    group = f"line-{number}"
    band = axes.fill_between(x, [p.low for p in line], [p.high for p in line], color=colour, alpha=0.16, lw=0)
    band.set_gid(group)
    (drawn,) = axes.plot(x, [p.value for p in line], color=colour, lw=1.8, solid_capstyle="round")
    drawn.set(gid=group, marker="o", markersize=3 if marked else 0, markeredgewidth=0)
    alone = [p for p, before, after in zip(line, [None, *line], [*line[1:], None], strict=False)
             if not marked and _gap(before) and _gap(after)]  # fmt: skip
    axes.plot([p.x for p in alone], [p.value for p in alone], color=colour, lw=0, marker="o", markersize=2.6)


def _gap(point: Point | None) -> bool:
    return point is None or math.isnan(point.value)


def _axes(axes: Axes, drawn: Drawn, *, steps: float, limits: tuple[float, float] | None) -> None:
    panel = drawn.panel
    axes.set_xlabel(panel.x)
    axes.set_ylabel(panel.y_label)
    if panel.x == "step":
        axes.set_xlim(0, 1.01 * max(steps, 1))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    values = [p.value for _, line in drawn.lines for p in line if not math.isnan(p.value)]
    if panel.log and 0 < 10 * min(values) < max(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(numticks=5))
        axes.minorticks_off()
    else:
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.ticklabel_format(axis="y", useOffset=False)
        axes.set_ylim(*(limits or extent(drawn)))
    axes.grid(axis="y", color=GRID, lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0, pad=4)


def extent(*drawn: Drawn) -> tuple[float, float]:
    """Lowest and highest of values and intervals, with room; from 0 where that is near, or nothing moves."""
    ends = [end for one in drawn for _, line in one.lines for p in line for end in p[1:]]
    known = [end for end in ends if not math.isnan(end)]
    low, high = min(known), max(known)
    if low >= 0 and (low < 0.6 * high or high - low < 0.02 * high):
        low = 0.0
    room = max(0.06 * (high - low), 0.005 * abs(high)) or 0.5
    return (low if low == 0 else low - room), high + room


def _of_the_page(text: str) -> str:
    """The element alone, its colours and font the page's, its groups by class, for ids are for one only."""
    text = text[text.index("<svg") :]
    text = re.sub(r' width="[\d.]+pt" height="[\d.]+pt"', ' role="img"', text, count=1)
    text = re.sub(r"\s*<(metadata|defs)>\s*<style.*?</style>\s*</\1>", "", text, flags=re.DOTALL)
    text = re.sub(r' id="(line-\d)"', r' class="\1"', text)
    text = re.sub(r' id="(?!m[0-9a-f]{10}|p[0-9a-f]{10})[\w.-]+"', "", text)
    text = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font: \1 var(--font)", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
