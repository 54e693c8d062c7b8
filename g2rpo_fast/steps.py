"""What a training step is made of, for the loops in `train.py` and `overlap.py`."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from g2rpo_fast.assemble import Parts
from g2rpo_fast.config import Config
from g2rpo_fast.console import Console
from g2rpo_fast.credit import advantages
from g2rpo_fast.evaluate import evaluate
from g2rpo_fast.learner import Learner
from g2rpo_fast.metrics import Phases, finite
from g2rpo_fast.objective.batch import TrainBatch, make_batch, split_groups
from g2rpo_fast.optim import learning_rate
from g2rpo_fast.pieces import Outcome, Scored
from g2rpo_fast.rollout.sampled import SampledBatch
from g2rpo_fast.rounds import settled
from g2rpo_fast.run_state import TrainState
from g2rpo_fast.safekeeping import save
from g2rpo_fast.samples import Row, held_out_rows, step_rows
from g2rpo_fast.step_metrics import rollout_metrics, shaping_metrics
from g2rpo_fast.tree import plan_trees
from g2rpo_fast.types import Doubles


@contextmanager
def at_step(step: int) -> Iterator[None]:
    """Names the step in a FloatingPointError of the engine."""
    try:
        yield
    except FloatingPointError as error:
        raise FloatingPointError(f"step {step}: {error}") from error


@dataclass(frozen=True)
class Ready:
    """An update before its first pass."""

    learner: Learner
    chosen: Scored
    """The rows that the rounds settle on, with shaped rewards, cut into units."""
    advantage_R: Doubles
    batches: list[TrainBatch]
    """Of each optimiser step of a pass."""


def ready(parts: Parts, state: TrainState, scored: Scored) -> Ready:
    """From a step's rows to what the update reads."""
    recipe = parts.recipe.at(state.memory, scored.clock)
    learner = parts.learner.using(recipe.token_credit, recipe.weights, recipe.terms)
    chosen = recipe.cut(recipe.shaped(settled(recipe.rounds, scored, state.memory)))
    advantage_R = advantages(recipe.credit, chosen, state.store)
    batches = train_batches(parts.config, chosen, advantage_R, keep_all=learner.keeps_all)
    return Ready(learner, chosen, advantage_R, batches)


def learn(parts: Parts, state: TrainState, scored: Scored) -> Outcome:
    """The update, on the rows that the rounds settle on; with metrics of it and of all rollouts."""
    config = parts.config
    given = ready(parts, state, scored)
    chosen, advantage_R = given.chosen, given.advantage_R
    lr = learning_rate(config.optim, state.step, config.run.steps)
    with parts.progress.phase(f"step {state.step + 1}: update", unit="micro-batches") as phase:
        moved = given.learner.update(given.batches, lr=lr, scored=chosen, report=phase)
    stats = {"optim/lr": lr, **moved, **rollout_metrics(scored, chosen, advantage_R)}
    if not given.learner.tree.shares:
        stats["update/ratio_if_shared"] = ratio_if_shared(config, given.batches)
    if parts.recipe.shaping:
        stats |= shaping_metrics(scored.rewards, chosen.rewards)
    return Outcome(scored=scored, settled=chosen, advantage_R=advantage_R, stats=stats)


def ratio_if_shared(config: Config, batches: Sequence[TrainBatch]) -> float:
    """Tokens of rows over positions of their prefix trees; NaN without any."""
    tree = config.tree
    plans = [
        plan
        for batch in batches
        for plan in plan_trees(batch.sequences, token_budget=tree.token_budget, min_saved=tree.min_saved)
    ]
    positions = sum(len(plan.token_S) for plan in plans)
    return sum(plan.unshared_tokens for plan in plans) / positions if plans else math.nan


def train_batches(
    config: Config, scored: Scored, advantage_R: Doubles, *, keep_all: bool
) -> list[TrainBatch]:
    """The batch of each optimiser step of a pass."""
    objective = config.objective
    units = None if scored.cuts is None else [cut.unit_K for cut in scored.cuts]
    return [
        make_batch(
            scored.rollouts,
            indices,
            advantage_R,
            aggregation=objective.aggregation,
            constant_length=objective.constant_length or config.rollout.max_tokens,
            keep_all=keep_all,
            units=units,
        )
        for indices in split_groups(scored.rollouts, config.optim.minibatches)
    ]


def update(
    parts: Parts,
    state: TrainState,
    sampled: SampledBatch,
    scored: Scored,
    stats: dict[str, float],
    phases: Phases,
) -> TrainState:
    """Moves the weights; the state after it, neither evaluated nor logged yet. Finished once begun."""
    with parts.interrupts.finish_first(f"the update of step {state.step + 1}"):
        with phases("update"):
            outcome = learn(parts, state, scored)
        state = next_state(parts, state, sampled, outcome)
        rows = _sample_rows(parts, state.step, outcome)
        state = replace(
            state, unlogged={**stats, **outcome.stats, **_times(phases)}, unlogged_rows=tuple(rows)
        )
        parts.last.put(state)
    return state


def next_state(parts: Parts, state: TrainState, sampled: SampledBatch, outcome: Outcome) -> TrainState:
    """The state after a step, neither evaluated nor logged yet."""
    recipe, scored = parts.recipe, outcome.scored
    # The last passes over the batch, in a row, in which every optimiser step was skipped.
    bad_updates = int(outcome.stats["optim/bad_updates"])
    all_bad = bad_updates == parts.config.optim.updates_per_batch
    counted = state.signal_steps
    return replace(
        state,
        step=state.step + 1,
        cursor=state.cursor + sampled.num_prompts,
        memory=recipe.observed(state.memory, outcome),
        store=recipe.learned(state.store, outcome),
        prompt_ids=tuple(dict.fromkeys(rollout.prompt.id for rollout in scored.rollouts)),
        weight_version=state.weight_version + 1,
        bad_steps=state.bad_steps + bad_updates if all_bad else bad_updates,
        signal_steps=None if counted is None else counted + has_signal(scored),
    )


def has_signal(scored: Scored) -> bool:
    """Whether some group has members of different reward."""
    seen: dict[int, float] = {}
    return any(
        seen.setdefault(rollout.group, total) != total
        for rollout, total in zip(scored.rollouts, scored.rewards.total_R.tolist(), strict=True)
    )


def close_step(
    parts: Parts,
    state: TrainState,
    phases: Phases,
    console: Console,
    sampled: SampledBatch | None = None,
) -> TrainState:
    """Evaluates and saves when due, logs; nothing is in flight, and the engine has the state's weights.

    `sampled`: the next step's batch, if it is there already. Raises FloatingPointError.
    """
    with at_step(state.step), phases("evaluate"):
        stats, held_out = evaluation(parts, state)
    record = {**(state.unlogged or {}), **stats, **parts.engine.metrics(), **_times(phases)}
    rows = state.unlogged_rows
    state = logged(parts, state, record, (*rows, *held_out), sampled)
    console.step(state.step, record, rows)
    if _save_is_due(parts, state):
        save(parts)
    stop_when_broken(parts, state)
    return state


def _save_is_due(parts: Parts, state: TrainState) -> bool:
    config, every_s = parts.config, parts.config.checkpoint.every_s
    return (
        parts.callbacks.stopped
        or state.step in (config.run.steps, state.best_step)
        or state.step % config.checkpoint.every == 0
        or (every_s is not None and time.monotonic() - parts.last.saved_s >= every_s)
    )


def logged(
    parts: Parts,
    state: TrainState,
    record: Mapping[str, float],
    rows: Sequence[Mapping[str, Any]],
    sampled: SampledBatch | None = None,
) -> TrainState:
    """Writes the state's record and samples; the state with that done."""
    state = with_best(replace(state, unlogged=None, unlogged_rows=()), record.get("eval/accuracy"))
    with parts.interrupts.finish_first("this record"):
        parts.sample_log.write(state.step, *rows)
        parts.log.write(state.step, record)
        parts.loggers.write(state.step, finite(record))
        parts.last.put(state, sampled)
    parts.callbacks.step(state.step, record)
    return state


def _times(phases: Phases) -> dict[str, float]:
    return {f"time/{name}_s": seconds for name, seconds in phases.seconds().items()}


def _sample_rows(parts: Parts, step: int, outcome: Outcome) -> list[Row]:
    due = parts.config.samples.due(step, parts.config.run.steps)
    return step_rows(outcome, parts.sampler.decode) if due else []


def evaluation(parts: Parts, state: TrainState) -> tuple[dict[str, float], list[Row]]:
    """Held-out metrics and samples, when due: before the first step, every so often, after the last."""
    config = parts.config.evaluate
    due = config.every and (state.step % config.every == 0 or state.step == parts.config.run.steps)
    if not due or parts.eval_prompts is None:
        return {}, []
    stats, rollouts, rewards = evaluate(parts.sampler, parts.eval_prompts.prompts, config)
    kept = parts.config.samples.every > 0
    return stats, held_out_rows(rollouts, rewards, parts.sampler.decode) if kept else []


def with_best(state: TrainState, accuracy: float | None) -> TrainState:
    if (
        accuracy is None
        or math.isnan(accuracy)
        or (state.best_accuracy is not None and accuracy <= state.best_accuracy)
    ):
        return state
    return replace(state, best_accuracy=accuracy, best_step=state.step)


def stop_when_broken(parts: Parts, state: TrainState) -> None:
    config = parts.config
    if state.bad_steps < config.optim.max_bad_steps:
        return
    raise FloatingPointError(
        f"step {state.step}: {state.bad_steps} updates in a row had a non-finite gradient and were skipped; "
        f"the last one's prompts: {', '.join(state.prompt_ids)}"
    )
