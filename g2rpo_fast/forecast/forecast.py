"""All of a forecast: the step's work, memory, time, disk."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from g2rpo_fast.adapters.base import num_weights
from g2rpo_fast.adapters.merged import has_adapters
from g2rpo_fast.assemble import Parts
from g2rpo_fast.evaluate import PROFILE_ROUND, given_asks
from g2rpo_fast.forecast.lengths import Lengths, completed
from g2rpo_fast.forecast.memory import Memory, memory_of, this_process
from g2rpo_fast.forecast.rollout import SampledStep, sample_step
from g2rpo_fast.forecast.update import (
    UpdateCosts,
    made_up,
    measure_update,
    plans_of,
    positions_of,
    shared_positions,
    still,
)
from g2rpo_fast.gather import clock_of, first_asks
from g2rpo_fast.guidance import PROFILE_FRACTIONS
from g2rpo_fast.learner import Passes
from g2rpo_fast.optim.make import moment_bytes
from g2rpo_fast.rollout.groups import plain_asks
from g2rpo_fast.run_state import TrainState
from g2rpo_fast.steps import Ready, ready
from g2rpo_fast.types import Ask, Completion


@dataclass(frozen=True, kw_only=True)
class Work:
    """Of a step: that of the first, with responses as long as they are expected to be."""

    prompts: int
    groups: int
    rows: int
    guided_rows: int
    asks_again: bool
    """Pieces may sample more in further rounds, which are not counted."""
    response_tokens: float
    """Mean length that is sampled, guidance excluded."""
    ended: int
    """Responses of the calibration that ended by themselves, and of how many:"""
    sampled: int
    optimizer_steps: int
    unshared_tokens: int
    """Tokens of all rows, each encoded by itself."""
    positions: int
    """The same as prefix trees, or as each row by itself where the run shares nothing."""
    shared_positions: int | None
    """Where it shares nothing: the same as prefix trees."""
    micro_batches: int
    trained_positions: int | None
    """Of the groups with a signal by the rewards of the first step; None = not sampled wholly."""
    passes: Passes


@dataclass(frozen=True, kw_only=True)
class Time:
    """Seconds."""

    rollout_s: float
    update_s: float
    """Where every group has a signal, or by the first step's rewards where these are known."""
    sync_s: float
    evaluation_s: float
    """One."""
    evaluations: int
    profile_s: float
    """At most."""
    steps: int

    @property
    def step_s(self) -> float:
        return self.rollout_s + self.update_s + self.sync_s

    @property
    def run_s(self) -> float:
        return self.profile_s + self.evaluations * self.evaluation_s + self.steps * self.step_s


@dataclass(frozen=True, kw_only=True)
class Disk:
    """Bytes."""

    checkpoint: int
    moments: int
    """Of it."""
    checkpoints: int
    """That are there at once, at most."""
    model: int

    @property
    def run(self) -> int:
        return self.checkpoint * (self.checkpoints + 1) + self.model  # one is being written


@dataclass(frozen=True, kw_only=True)
class Forecast:
    work: Work
    memory: Memory
    time: Time
    disk: Disk


def forecast(
    parts: Parts, *, seconds: float, response_tokens: float | None = None, trial: bool = False
) -> Forecast:
    """What a run of these parts takes.

    Args:
        seconds: to spend on calibration, about; slow machines take longer, fast ones less.
        response_tokens: mean length of responses, where it is known better than by the calibration.
        trial: the parts are for this forecast alone: weights may move, and rewards are asked.
    """
    state, process = parts.state, this_process()
    asks, prompts = first_asks(parts, state, clock_of(parts, state))
    found = sample_step(parts, asks, seconds=seconds / 2)
    seed = parts.config.run.seed
    lengths = Lengths.seen(found.completions, seed=seed)
    if response_tokens is not None:
        lengths = Lengths((), response_tokens)
    completions, whole = found.completions, found.whole_s is not None and response_tokens is None
    if not whole:
        limit_R = np.array([request.max_tokens for request in found.requests])
        vocabulary = int(parts.learner.model.config.get_text_config().vocab_size)
        completions = completed(found.completions, lengths, limit_R, vocabulary=vocabulary, seed=seed)
    learning = parts if trial else still(parts)
    full = _ready(learning, state, asks, completions)
    plans = plans_of(learning, full)
    costs = measure_update(learning, state, asks, completions, seconds=seconds / 2)
    trained = None
    if trial and whole:
        trained = positions_of(plans_of(parts, _paid(parts, state, asks, completions)))
    work = Work(
        prompts=prompts,
        groups=len({ask.group for ask in asks}),
        rows=len(asks),
        guided_rows=sum(bool(ask.given_ids) for ask in asks),
        asks_again=parts.recipe.repeats,
        response_tokens=float(np.mean([len(completion.token_ids) for completion in completions])),
        ended=sum(completion.finish_reason == "stop" for completion in found.completions),
        sampled=len(found.completions),
        optimizer_steps=len(full.batches) * parts.config.optim.updates_per_batch,
        unshared_tokens=sum(plan.unshared_tokens for of_step in plans for plan in of_step),
        positions=positions_of(plans),
        shared_positions=shared_positions(learning, full),
        micro_batches=sum(map(len, plans)),
        trained_positions=trained,
        passes=full.learner.passes(full.batches),
    )
    return Forecast(
        work=work,
        memory=memory_of(parts, plans, found.requests, process),
        time=_time(parts, work, found, completions, costs, lengths),
        disk=_disk(parts),
    )


def _ready(parts: Parts, state: TrainState, asks: Sequence[Ask], completions: Sequence[Completion]) -> Ready:
    """With rewards of which every group has several kinds."""
    return ready(parts, state, made_up(parts, state, parts.sampler.rollouts(asks, completions)))


def _paid(parts: Parts, state: TrainState, asks: Sequence[Ask], completions: Sequence[Completion]) -> Ready:
    """With the run's own rewards."""
    rollouts = parts.sampler.rollouts(asks, completions)
    rewards = parts.sampler.paid(rollouts, what="calibration")
    return ready(parts, state, replace(made_up(parts, state, rollouts), rewards=rewards))


def _time(
    parts: Parts,
    work: Work,
    found: SampledStep,
    completions: Sequence[Completion],
    update: UpdateCosts,
    lengths: Lengths,
) -> Time:
    config, costs, max_rows = parts.config, found.costs, parts.config.rollout.max_rows

    def sampling_s(some: Sequence[Ask]) -> float:
        requests = parts.sampler.requests(some, 0)
        limit_R = np.array([request.max_tokens for request in requests])
        length_R = lengths.draw(limit_R, seed=config.run.seed)
        return costs.seconds(requests, length_R, max_rows=max_rows)

    length_R = np.array([len(completion.token_ids) for completion in completions])
    measured = found.whole_s if len(found.completions) == len(completions) else None
    began = time.perf_counter()
    parts.engine.sync(parts.state.weight_version)
    sync_s = time.perf_counter() - began
    held_out = parts.eval_prompts.prompts if parts.eval_prompts and config.evaluate.every else ()
    sizes = [config.evaluate.samples] * len(held_out)
    positions = work.positions if work.trained_positions is None else work.trained_positions
    rollout_s = costs.seconds(found.requests, length_R, max_rows=max_rows) if measured is None else measured
    return Time(
        rollout_s=rollout_s,
        update_s=update.fixed_s + update.position_s * positions,
        sync_s=sync_s,
        evaluation_s=sampling_s(plain_asks(held_out, sizes, max_tokens=config.rollout.max_tokens))
        if held_out
        else 0.0,
        evaluations=2 + (config.run.steps - 1) // config.evaluate.every if held_out else 0,
        profile_s=_profile_s(parts, sampling_s, work.response_tokens),
        steps=config.run.steps,
    )


def _profile_s(parts: Parts, sampling_s: Callable[[Sequence[Ask]], float], tokens: float) -> float:
    """Of the guidance profile, if its verdict does not become clear before it has sampled what it may."""
    config = parts.config.evaluate
    traced = [prompt for prompt in parts.prompts.prompts if prompt.trace_ids][: config.profile_prompts]
    if not parts.config.guidance.enabled or not traced:
        return 0.0
    longest = parts.config.rollout.max_tokens - parts.config.guidance.reserve
    some = traced[:PROFILE_ROUND]
    one_round = sum(
        sampling_s(given_asks(parts.sampler, some, config, fraction, longest=longest))
        for fraction in PROFILE_FRACTIONS
    )
    rows = len(some) * config.profile_samples * len(PROFILE_FRACTIONS)
    budget = parts.config.run.prompts_per_step * parts.config.rollout.group_size
    budget *= parts.config.rollout.max_tokens
    rounds = min(math.ceil(len(traced) / PROFILE_ROUND), math.ceil(budget / (rows * max(tokens, 1.0))))
    return rounds * one_round


def _disk(parts: Parts) -> Disk:
    model = parts.learner.model
    trained = [p for p in model.parameters() if p.requires_grad]
    numbers = sum(map(num_weights, model.parameters()))
    if has_adapters(model):
        numbers -= sum(map(num_weights, trained))
    moments = moment_bytes(model, parts.config.optim)
    best = parts.config.evaluate.every > 0 and parts.eval_prompts is not None
    return Disk(
        checkpoint=sum(p.nbytes for p in trained) + moments,
        moments=moments,
        checkpoints=parts.config.checkpoint.keep + best,
        model=numbers * parts.export_dtype.itemsize,
    )
