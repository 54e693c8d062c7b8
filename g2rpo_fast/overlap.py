"""The overlapped loop: batch n + 1 is sampled while batch n trains (`run.ahead = 1`).

    sample 1 | ask 2 | train 1 | collect 2, sync | evaluate, save | ask 3 | train 2 | collect 3, sync | ...

Batch n + 1 is asked for after step n - 1: its tokens come from the weights after that step, one update older
than those that train on them (of step 1: none), and it is guided as an adaptive controller stood then, before
the rewards of batch n. Nothing is in flight during a sync, an evaluation or a checkpoint. A checkpoint of
step n holds batch n + 1, so a continued run repeats bit for bit; the last step asks for none.
"""

from __future__ import annotations

from g2rpo_fast.assemble import Parts
from g2rpo_fast.console import Console
from g2rpo_fast.gather import sample, sample_ahead, score
from g2rpo_fast.metrics import Phases
from g2rpo_fast.rollout.sampled import SampledBatch
from g2rpo_fast.run_state import TrainState
from g2rpo_fast.safekeeping import saved_when_stopped
from g2rpo_fast.steps import at_step, close_step, update


def run_ahead(parts: Parts, state: TrainState, console: Console) -> TrainState:
    """All steps that are left; returns the state after them."""
    sampled = parts.sampled
    with saved_when_stopped(parts):
        while state.step < parts.config.run.steps and not parts.callbacks.stopped:
            state, sampled = step_ahead(parts, state, sampled, console)
    return state


def step_ahead(
    parts: Parts, state: TrainState, sampled: SampledBatch | None, console: Console
) -> tuple[TrainState, SampledBatch | None]:
    """One step on `sampled` (None = to be sampled now); returns the state after it and the next batch."""
    phases, collect, following = Phases(), None, None
    with at_step(state.step + 1), phases("rollout"):
        if sampled is None:
            sampled = sample(parts, state)
            parts.last.put(state, sampled)
        if state.step + 1 < parts.config.run.steps:
            collect = sample_ahead(parts, state, sampled)
    with phases("reward"):
        scored, stats = score(parts, state, sampled)
    parts.interrupts.check()
    state = update(parts, state, sampled, scored, stats, phases)
    with at_step(state.step + 1), phases("rollout"):
        following = collect() if collect else None
    parts.last.put(state, following)  # until then without the batch, which a failing engine loses
    with phases("sync"), parts.progress.phase(f"step {state.step}: weights to the engine"):
        parts.engine.sync(state.weight_version)
    return close_step(parts, state, phases, console, following), following
