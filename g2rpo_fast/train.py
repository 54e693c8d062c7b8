"""The training loop: guidance → rollout → rewards → advantage → tree → update → sync, one step at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace

from g2rpo_fast.assemble import Parts, assemble
from g2rpo_fast.callbacks import Callback, Callbacks
from g2rpo_fast.checkpoint import drop_optimizers, random_state, restore_random_state
from g2rpo_fast.config import Config
from g2rpo_fast.console import Console
from g2rpo_fast.evaluate import guidance_profile
from g2rpo_fast.files import new_directory, write_text
from g2rpo_fast.forecast import forecast
from g2rpo_fast.forecast.limits import disk_bytes, memory_bytes
from g2rpo_fast.forecast.show import brief
from g2rpo_fast.gather import sample, score
from g2rpo_fast.guidance import judge_profile
from g2rpo_fast.interrupts import Interrupts
from g2rpo_fast.metrics import Phases
from g2rpo_fast.model.export import export_model
from g2rpo_fast.overlap import run_ahead
from g2rpo_fast.own import PieceError
from g2rpo_fast.progress import Progress
from g2rpo_fast.run_state import TrainState
from g2rpo_fast.safekeeping import all_finite, save, saved_when_stopped
from g2rpo_fast.steps import at_step, close_step, evaluation, logged, update
from g2rpo_fast.types import TrainResult

SIGNAL_STEPS = 3
"""Fewer steps are a trial of the pipeline, and may well have no signal: that is told, and no more."""


def train(
    config: Config,
    *,
    show: Callable[[str], None] = print,
    progress: Progress | None = None,
    estimate_s: float = 0.0,
    callbacks: Sequence[Callback] = (),
) -> TrainResult:
    """Trains, or continues the run that `config.run.dir` holds.

    Args:
        show: is given the run's lines.
        progress: tells of phases while they last; None = on standard error.
        estimate_s: seconds to spend, about, before a run begins, on finding out what it will take. It leaves
            no trace in the run.
        callbacks: are told of steps, checkpoints and the end, and may end the run.

    Ctrl-C and SIGTERM raise KeyboardInterrupt (`interrupts.Terminated`), after the update that is under way
    and after the state was saved; handlers of the calling program's own stay.

    Raises:
        ValueError: wrong configuration, data or model; nothing was spent.
        RewardError, PieceError, EngineError: a reward function, a piece of the method or a callback, or the
            rollout engine failed.
        FloatingPointError: weights or logits are no longer finite, or too many updates in a row had a
            non-finite gradient.
        WriteError: a file of the run could not be written.

    Whatever ended a run that had begun, the last state that the weights agree with was saved, and a note of
    the exception says where.
    """
    interrupts, told = Interrupts(show), Callbacks(callbacks)
    with interrupts.handled(), closing(assembled(config, show, progress, interrupts)) as parts:
        parts = replace(parts, callbacks=told)
        console = Console(parts, show)
        console.start()
        with saved_when_stopped(parts), at_step(parts.state.step):
            if estimate_s and not parts.resumed:
                estimate(parts, show, estimate_s)
            state = opened(parts, console)
        loop = run_ahead if parts.config.run.ahead else run
        state = loop(parts, state, console)
        with saved_when_stopped(parts):
            return finish(parts, state, console)


def assembled(
    config: Config, show: Callable[[str], None], progress: Progress | None, interrupts: Interrupts
) -> Parts:
    """Listening to the interrupts that were there before it: making a model takes long, too."""
    return replace(assemble(config, show, progress), interrupts=interrupts)


def estimate(parts: Parts, show: Callable[[str], None], seconds: float) -> None:
    """Tells what the run will take. Weights, optimiser and random numbers are afterwards as they were."""
    before = random_state()
    try:
        with parts.progress.phase("estimating"):
            found = forecast(parts, seconds=seconds)
    except (ValueError, FloatingPointError, PieceError) as error:  # of a user's functions, on made-up rows
        show(f"note: no estimate of time and memory: {error}")
    else:
        free, disk = memory_bytes(parts.learner.model.device), disk_bytes(parts.directory)
        show(brief(found, free=free, disk_free=disk))
    finally:
        restore_random_state(before)


def opened(parts: Parts, console: Console) -> TrainState:
    """The state to train on from: what an earlier process left undone of its step is done first."""
    if parts.state.unlogged is None:
        return parts.state
    if parts.state.step == 0:
        return before_training(parts, console)
    phases = Phases(parts.state.unlogged.get("time/step_s", 0.0))
    return close_step(parts, parts.state, phases, console, parts.sampled)


def run(parts: Parts, state: TrainState, console: Console) -> TrainState:
    """All steps that are left, each sampled and then trained on; returns the state after them."""
    with saved_when_stopped(parts):
        while state.step < parts.config.run.steps and not parts.callbacks.stopped:
            state = train_step(parts, state, console)
    return state


def train_step(parts: Parts, state: TrainState, console: Console) -> TrainState:
    """One step; returns the state after it, which is logged and, when due, saved."""
    phases = Phases()
    with at_step(state.step + 1), phases("rollout"):
        sampled = sample(parts, state)
    with phases("reward"):
        scored, stats = score(parts, state, sampled)
    parts.interrupts.check()
    parts.engine.release()
    state = update(parts, state, sampled, scored, stats, phases)
    with phases("sync"), parts.progress.phase(f"step {state.step}: weights to the engine"):
        parts.engine.sync(state.weight_version)
    return close_step(parts, state, phases, console)


def before_training(parts: Parts, console: Console) -> TrainState:
    """The guidance profile, and accuracy before the first step, which is the first to be the best."""
    config = parts.config
    if config.guidance.enabled and config.evaluate.profile_prompts:
        one_step = config.run.prompts_per_step * config.rollout.group_size * config.rollout.max_tokens
        points = guidance_profile(
            parts.sampler,
            parts.prompts.prompts,
            config.evaluate,
            reserve=config.guidance.reserve,
            budget=one_step,
        )
        warnings = judge_profile(points)
        console.profile(points, warnings)
        record = {"points": [vars(p) for p in points], "warnings": warnings}
        write_text(parts.directory / "guidance_profile.json", json.dumps(record, indent=1))
    stats, rows = evaluation(parts, parts.state)
    state = logged(parts, parts.state, stats, rows)
    console.evaluation(0, stats)
    if state.best_step == 0:
        save(parts)
    return state


def finish(parts: Parts, state: TrainState, console: Console) -> TrainResult:
    """Saves the model in transformers' format, whole or not at all."""
    model_dir = parts.directory / "model"
    with parts.interrupts.finish_first("saving the model"), parts.progress.phase("saving the model"):
        if not all_finite(parts.learner.model):
            raise FloatingPointError(f"step {state.step}: weights are no longer finite")
        with new_directory(model_dir, parts.directory / "writing_model") as temporary:
            export_model(temporary, parts.learner.model, parts.tokenizer, parts.export_dtype)
    if not parts.config.checkpoint.keep_moments:
        drop_optimizers(parts.directory / "checkpoints")
    parts.log.close()
    parts.sample_log.close()
    parts.loggers.close(finished=True)
    console.finish(state, model_dir)
    result = TrainResult(
        directory=parts.directory,
        model_dir=model_dir,
        metrics_path=parts.directory / "metrics.jsonl",
        best_accuracy=state.best_accuracy,
        no_signal=state.signal_steps == 0 and state.step >= SIGNAL_STEPS,
    )
    parts.callbacks.ended(result)
    return result
