"""The training loop: guidance → rollout → rewards → advantage → tree → update → sync, one step at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from g2rpo_fast.assemble import Parts, TrainState, assemble
from g2rpo_fast.config import Config
from g2rpo_fast.console import Console
from g2rpo_fast.evaluate import guidance_profile
from g2rpo_fast.guidance import judge_profile
from g2rpo_fast.metrics import Phases
from g2rpo_fast.overlap import run_ahead
from g2rpo_fast.steps import close_step, evaluation, learn, next_state, sample, saved_on_error, score


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a finished run leaves."""

    directory: Path
    model_dir: Path
    """In transformers' format: `AutoModelForCausalLM.from_pretrained` loads it."""
    metrics_path: Path
    best_accuracy: float | None
    """Best evaluation accuracy."""


def train(config: Config, *, show: Callable[[str], None] = print) -> TrainResult:
    """Trains, or continues the run that `config.run.dir` holds.

    Raises:
        ValueError: wrong configuration, data or model; nothing was spent.
        RewardError, EngineError: a reward function or the rollout engine failed; a checkpoint of the last
            finished step was saved.
        FloatingPointError: too many updates in a row had a non-finite gradient; likewise saved.
    """
    parts = assemble(config, show)
    with closing(parts.engine):
        console = Console(parts, show)
        console.start()
        if not parts.resumed:
            before_training(parts, console)
        loop = run_ahead if parts.config.run.ahead else run
        return finish(parts, loop(parts, parts.state, console), console)


def run(parts: Parts, state: TrainState, console: Console) -> TrainState:
    """All steps that are left, each sampled and then trained on; returns the state after them."""
    while state.step < parts.config.run.steps:
        state = train_step(parts, state, console)
    return state


def train_step(parts: Parts, state: TrainState, console: Console) -> TrainState:
    """One step; returns the state after it, which is logged and, when due, saved."""
    phases = Phases()
    with saved_on_error(parts, state):
        with phases("rollout"):
            sampled = sample(parts, state)
        with phases("reward"):
            rollouts, rewards, stats = score(parts, state, sampled)
    with phases("update"):
        parts.engine.release()
        stats |= learn(parts, state, rollouts, rewards)
    state = next_state(parts.config, state, rollouts, rewards, skipped=int(stats["optim/skipped"]))
    with saved_on_error(parts, state), phases("sync"):  # what is saved then has no record of this step
        parts.engine.sync(state.weight_version)
    return close_step(parts, state, stats, phases, console)


def before_training(parts: Parts, console: Console) -> None:
    """The guidance profile, and accuracy before the first step."""
    config = parts.config
    if config.guidance.enabled and config.evaluate.profile_prompts:
        points = guidance_profile(
            parts.judge, parts.prompts.prompts, config.evaluate, reserve=config.guidance.reserve
        )
        warnings = judge_profile(points)
        console.profile(points, warnings)
        record = {"points": [vars(p) for p in points], "warnings": warnings}
        (parts.directory / "guidance_profile.json").write_text(json.dumps(record, indent=1))
    stats = evaluation(parts, parts.state)
    parts.log.write(0, stats)
    console.evaluation(0, stats)


def finish(parts: Parts, state: TrainState, console: Console) -> TrainResult:
    """Saves the model in transformers' format, whole or not at all."""
    model_dir = parts.directory / "model"
    temporary = parts.directory / "writing_model"
    shutil.rmtree(temporary, ignore_errors=True)
    parts.learner.model.save_pretrained(temporary)
    parts.tokenizer.save_pretrained(temporary)
    shutil.rmtree(model_dir, ignore_errors=True)
    temporary.rename(model_dir)
    parts.log.close()
    console.finish(model_dir)
    return TrainResult(
        directory=parts.directory,
        model_dir=model_dir,
        metrics_path=parts.directory / "metrics.jsonl",
        best_accuracy=state.best_accuracy,
    )
