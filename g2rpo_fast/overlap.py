"""The overlapped loop: batch n + 1 is sampled while batch n trains (`run.ahead = 1`).

    sample 1 | ask 2 | train 1 | collect 2, sync | evaluate, save | ask 3 | train 2 | collect 3, sync | ...

Batch n + 1 is asked for after step n - 1: its tokens come from the weights after that step, one update older
than those that train on them (of step 1: none), and it is guided as an adaptive controller stood then, before
the rewards of batch n. Nothing is in flight during a sync, an evaluation or a checkpoint. A checkpoint of
step n holds batch n + 1, so a continued run repeats bit for bit; the last step asks for none.
"""

from __future__ import annotations

from g2rpo_fast.assemble import Parts, TrainState
from g2rpo_fast.console import Console
from g2rpo_fast.metrics import Phases
from g2rpo_fast.rollout.sampled import SampledBatch
from g2rpo_fast.steps import close_step, learn, next_state, sample, sample_ahead, saved_on_error, score


def run_ahead(parts: Parts, state: TrainState, console: Console) -> TrainState:
    """All steps that are left; returns the state after them."""
    sampled = parts.sampled
    while state.step < parts.config.run.steps:
        state, sampled = step_ahead(parts, state, sampled, console)
    return state


def step_ahead(
    parts: Parts, state: TrainState, sampled: SampledBatch | None, console: Console
) -> tuple[TrainState, SampledBatch | None]:
    """One step on `sampled` (None = to be sampled now); returns the state after it and the next batch."""
    phases, collect, following = Phases(), None, None
    with saved_on_error(parts, state, sampled):
        with phases("rollout"):
            sampled = sampled or sample(parts, state)
            if state.step + 1 < parts.config.run.steps:
                collect = sample_ahead(parts, state)
        with phases("reward"):
            rollouts, rewards, stats = score(parts, state, sampled)
    with phases("update"):
        stats |= learn(parts, state, rollouts, rewards)
    state = next_state(parts.config, state, rollouts, rewards, skipped=int(stats["optim/skipped"]))
    with saved_on_error(parts, state):  # without the batch that the engine lost; this step has no record
        with phases("rollout"):
            following = collect() if collect else None
        with phases("sync"):
            parts.engine.sync(state.weight_version)
    return close_step(parts, state, stats, phases, console, following), following
