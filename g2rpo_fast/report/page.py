"""The page: one file, with everything in it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from g2rpo_fast.metric_names import metric_of
from g2rpo_fast.report.draw import extent, svg
from g2rpo_fast.report.panels import Drawn, sections
from g2rpo_fast.report.runs import Run
from g2rpo_fast.report.series import window

PHASES = ("rollout", "reward", "update", "sync", "evaluate")
MOST_TEXT = 1500
"""Characters of a sample's parts."""
PLACES = ("run.dir",)
"""Settings in which runs always differ."""


def page(runs: Sequence[Run], *, reload_s: float | None = None) -> str:
    """HTML of the runs side by side. `reload_s`: it loads itself again after so many seconds."""
    folder = resources.files("g2rpo_fast.report")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": number, "cut": _cut, "value": _value}
    template = environment.from_string((folder / "page.html").read_text(encoding="utf-8"))
    return template.render(
        runs=runs,
        style=Markup((folder / "page.css").read_text(encoding="utf-8")),
        sections=[(section, _charts(drawn, runs)) for section, drawn in sections(runs)],
        pooled=window(runs),
        phases=[(run, _phases(run)) for run in runs if run.records],
        tiles=[(run, _tiles(run)) for run in runs],
        samples=[(run, _samples(run)) for run in runs if run.rows],
        differences=_settings(runs, differing=True) if len(runs) > 1 else [],
        settings=_settings(runs, differing=False),
        written=time.strftime("%Y-%m-%d %H:%M:%S"),
        reload_ms=None if reload_s is None else int(1000 * reload_s),
    )


class Chart(NamedTuple):
    drawn: Drawn
    picture: Markup
    last: list[tuple[Run, float]]
    about: str


def _charts(drawn: Sequence[Drawn], runs: Sequence[Run]) -> list[Chart]:
    steps = max(run.steps for run in runs)
    charts = []
    for one in drawn:
        scale = one.panel.scale
        limits = extent(*(d for d in drawn if d.panel.scale == scale)) if scale else None
        last = [(run, [p.value for p in line if not math.isnan(p.value)][-1]) for run, line in one.lines]
        metric = metric_of(one.panel.name)
        over = f"; mean over {metric.over}" if metric and metric.over else ""
        about = f"{one.panel.name}: {metric.what}{over}" if metric else one.panel.name
        charts.append(Chart(one, Markup(svg(one, steps=steps, limits=limits)), last, about))
    return charts


def _phases(run: Run) -> list[tuple[str, float]]:
    """Mean seconds a step of each phase, and of what lies between."""

    def mean(name: str) -> float:
        return sum(record.get(f"time/{name}_s") or 0.0 for record in run.records) / len(run.records)

    named = [(phase, mean(phase)) for phase in PHASES]
    return [*named, ("other", max(mean("step") - sum(s for _, s in named), 0.0))]


def _tiles(run: Run) -> list[tuple[str, str]]:
    """What a run is, in a few words."""
    evals = [r["eval/accuracy"] for r in (run.before, *run.records) if r.get("eval/accuracy") is not None]
    method = run.method.name if run.method else run.settings.get("method") or "as configured"
    state = "finished" if run.finished else f"last record {_clock(run.directory / 'metrics.jsonl')}"
    return [
        ("method", method),
        ("steps", f"{run.steps} of {run.total_steps}, {state}"),
        ("best held out", number(max(evals)) if evals else "not measured"),
        ("last held out", number(evals[-1]) if evals else "not measured"),
    ]


def _clock(file: Path) -> str:
    return time.strftime("%H:%M:%S", time.localtime(file.stat().st_mtime)) if file.exists() else "not yet"


def _samples(run: Run) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """The newest rows, then the first: (what they are, rows)."""
    trained = sorted({row["step"] for row in run.rows if row["split"] == "train"})
    steps = list(dict.fromkeys([*trained[-1:], *trained[:1]]))
    found = [(f"step {step}", _rows(run, step, "train")) for step in steps]
    held_out = sorted({row["step"] for row in run.rows if row["split"] != "train"})
    return found + [(f"held out, after step {s}", _rows(run, s, "held out")) for s in held_out[-1:]]


def _rows(run: Run, step: int, split: str) -> list[Mapping[str, Any]]:
    return [row for row in run.rows if (row["step"], row["split"]) == (step, split)]


def _settings(runs: Sequence[Run], *, differing: bool) -> list[tuple[str, list[Any]]]:
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    table = [(key, [run.settings.get(key) for run in runs]) for key in keys]
    if not differing:
        return table
    return [(k, values) for k, values in table if k not in PLACES and any(v != values[0] for v in values)]


def number(value: float | None) -> str:
    """Three digits."""
    if value is None or math.isnan(value):
        return "–"
    if 1000 <= abs(value) < 1e7:
        return f"{value:,.0f}"
    return f"{value:.3g}" if 1e-3 <= abs(value) < 1000 or value == 0 else f"{value:.1e}"


def _value(value: Any) -> str:
    """A setting, as one reads it; a piece by its name and settings."""
    if isinstance(value, dict):
        settings = [f"{k} {_value(v)}" for k, v in value.items() if k != "use" and v is not None]
        return f"{value.get('use', '')} {', '.join(settings)}".strip()
    if isinstance(value, list):
        return "; ".join(map(_value, value)) or "–"
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _cut(text: str) -> str:
    return text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]} … ({len(text) - MOST_TEXT} more)"
