"""What a person sees in the terminal: the set-up, one line a step, and the learning curve at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import plotext

from g2rpo_fast.adapters.base import num_weights
from g2rpo_fast.adapters.merged import has_adapters
from g2rpo_fast.assemble import Parts
from g2rpo_fast.checkpoint import checkpoint_name
from g2rpo_fast.data.prompts import PromptSet
from g2rpo_fast.data.rows import listed
from g2rpo_fast.guidance import ProfilePoint
from g2rpo_fast.metrics import read_metrics
from g2rpo_fast.run_directory import continuing
from g2rpo_fast.run_state import TrainState
from g2rpo_fast.samples import shown

_HEADER = (
    "    step   eval | accuracy  guided alone |  l  length | no signal  ratio |"
    "  tok/s   s/step  (roll upd)   left"
)
_MARKERS = ("hd", "·", "+", "x")


class Console:
    """Prints a run's progress through `show`, line by line: works in a terminal, a pipe and a log file."""

    def __init__(self, parts: Parts, show: Callable[[str], None]) -> None:
        self._parts = parts
        self._show = show
        self._began = time.perf_counter()
        self._first = parts.state.step - (parts.state.unlogged is not None)
        self._lines = 0

    def start(self) -> None:
        config, parts = self._parts.config, self._parts
        model = parts.learner.model
        parameters = sum(num_weights(p) for p in model.parameters())
        trained = sum(num_weights(p) for p in model.parameters() if p.requires_grad)
        adapters = f", {trained / 1e6:.2f}M of them in adapters" if has_adapters(model) else ""
        self._show(
            f"model: {parameters / 1e6:.2f}M parameters{adapters} on {model.device}, "
            f"{config.run.threads} threads; rollouts by {config.rollout.engine}\n"
            f"data: {_used(parts.prompts, 'prompts')}"
            + (f"; {_used(parts.eval_prompts, 'held out')}" if parts.eval_prompts else "")
            + f"\nrun: {config.run.steps} steps of {config.run.prompts_per_step} prompts x "
            f"{config.rollout.group_size} rollouts, in {parts.directory}\n"
            f"update: micro-batches of up to {config.tree.token_budget} positions"
            + ("" if parts.learner.tree.shares else ", each row by itself")
            + "\n"
            f"to continue it after a stop: {continuing(parts.directory)}"
        )
        for prompts in (parts.prompts, parts.eval_prompts):
            if prompts is not None and prompts.skipped:
                self._show(f"warning: {prompts.path}: rows that cannot be used{listed(prompts.skipped)}")
        if config.rollout.group_size < 2:
            self._show("warning: rollout.group_size = 1: an advantage is relative to its group, so 0")
        if parts.resumed:
            self._show(f"continued after step {parts.state.step}")

    def profile(self, points: Sequence[ProfilePoint], warnings: Sequence[str]) -> None:
        shown = "   ".join(f"{p.fraction:.0%}: {p.success:.3f}" for p in points)
        self._show(f"guidance profile (success given this share of the trace): {shown}")
        for warning in warnings:
            self._show(f"warning: {warning}")

    def evaluation(self, step: int, stats: Mapping[str, float]) -> None:
        if stats:
            self._show(f"held-out accuracy after step {step}: {stats['eval/accuracy']:.3f}")

    def step(self, step: int, m: Mapping[str, float], rows: Sequence[Mapping[str, Any]] = ()) -> None:
        """One line for a finished step, and a few of its rollouts where they are kept."""
        total = self._parts.config.run.steps
        if self._lines % 20 == 0:
            self._show(_HEADER)
        self._lines += 1
        elapsed = time.perf_counter() - self._began
        left = elapsed / (step - self._first) * (total - step)
        seconds = m["time/step_s"]
        evaluated = f"{m['eval/accuracy']:6.3f}" if "eval/accuracy" in m else " " * 6
        length = f"{m['guidance/length']:5.1f}" if "guidance/length" in m else f"{'-':>5}"
        self._show(
            f"{step:4d}/{total:<4d}{evaluated} | {m['rollout/accuracy']:8.3f} "
            f"{m['rollout/guided/accuracy']:7.3f} {m['rollout/unguided/accuracy']:5.3f} |"
            f"{length} {m['rollout/length']:5.1f} | "
            f"{m['rollout/zero_signal']:8.0%} {m['update/token_ratio']:6.2f} | "
            f"{self._rate(m)} {seconds:7.2f}  "
            f"({m['time/rollout_s'] / seconds:3.0%} {m['time/update_s'] / seconds:3.0%})  {left:5.0f}s"
        )
        if self._lines == 1 and m.get("update/ratio_if_shared", 0.0) > 1:
            ratio = m["update/ratio_if_shared"]
            self._show(
                f"note: with prefix trees the update would have encoded {ratio:.2f} times fewer tokens"
            )
        for line in shown(rows):
            self._show(line)

    def _rate(self, m: Mapping[str, float]) -> str:
        """Sampled tokens a second: the engine's own figure, or by the wait where that is the sampling."""
        if "engine/tokens_per_s" in m:
            return f"{m['engine/tokens_per_s']:6.0f}"
        if self._parts.config.run.ahead:
            return f"{'-':>6}"
        return f"{m['rollout/sampled_tokens'] / m['time/rollout_s']:6.0f}"

    def finish(self, state: TrainState, model_dir: Path) -> None:
        """The learning curve and where the models are."""
        records = read_metrics(self._parts.directory / "metrics.jsonl")
        curves = {
            "held out": [(r["step"], r["eval/accuracy"]) for r in records if "eval/accuracy" in r],
            "rollouts, unguided": [
                (r["step"], r["rollout/unguided/accuracy"])
                for r in records
                if r.get("rollout/unguided/accuracy") is not None
            ],
        }
        self._show(draw_curves(curves, title="accuracy by step"))
        if state.step and state.signal_steps == 0:
            self._show("warning: no step had a reward difference to learn from: the weights are as they were")
        if state.best_step not in (None, state.step):
            best = self._parts.directory / "checkpoints" / checkpoint_name(state.best_step)
            self._show(f"best on held-out prompts: {state.best_accuracy:.3f}, the model in {best}")
        self._show(f"model saved in {model_dir} ({time.perf_counter() - self._began:.0f} s)")
        self._show(disk_of(self._parts.directory))


def disk_of(directory: Path) -> str:
    """What a run's directory takes, and what of it can be had back."""

    def mib(path: Path) -> float:
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / (1 << 20)

    checkpoints = sorted((directory / "checkpoints").glob("step_*"))
    moments = sum(file.stat().st_size for path in checkpoints for file in path.glob("optimizer.pt")) / (
        1 << 20
    )
    line = (
        f"{directory}: {mib(directory):.0f} MiB, {mib(directory / 'checkpoints'):.0f} in {len(checkpoints)} "
    )
    line += "checkpoints"
    if moments >= 1:
        line += f" ({moments:.0f} of it the optimiser's state: checkpoint.keep_moments = false leaves it out)"
    return line


def _used(prompts: PromptSet, what: str) -> str:
    """How many prompts of a file are used, and how many are not."""
    long, bad = prompts.num_too_long, len(prompts.skipped)
    return (
        f"{len(prompts.prompts)} {what}"
        + (f", {long} over data.max_prompt_tokens left out" if long else "")
        + (f", {bad} that cannot be used skipped" if bad else "")
    )


def draw_curves(curves: Mapping[str, Sequence[tuple[float, float]]], *, title: str) -> str:
    """A text plot, 90 columns wide, of named (x, y) curves; empty ones are left out."""
    plotext.clear_figure()
    plotext.theme("clear")
    plotext.plot_size(90, 18)
    plotext.title(title)
    for (name, points), marker in zip(curves.items(), _MARKERS, strict=False):
        if points:
            plotext.plot([x for x, _ in points], [y for _, y in points], label=name, marker=marker)
    return plotext.uncolorize(plotext.build())
