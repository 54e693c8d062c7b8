"""The guidance controller: one state per run, advanced once per step by the rule that the config names."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from g2rpo_fast.guidance import adaptive, schedules
from g2rpo_fast.guidance.config import GuidanceConfig
from g2rpo_fast.guidance.state import GuidanceState
from g2rpo_fast.metrics import applicable_mean
from g2rpo_fast.types import Bools, Doubles

ADAPTIVE: dict[str, Callable[[GuidanceConfig, GuidanceState, float], adaptive.Update]] = {
    "paper": adaptive.paper,
    "official": adaptive.official,
    "windowed": adaptive.windowed,
}
"""(config, state, accuracy) -> (l of the next step, history to keep)."""


def initial_state(config: GuidanceConfig) -> GuidanceState:
    """Before the first step."""
    return GuidanceState(length=config.first)


def advance(
    config: GuidanceConfig, state: GuidanceState, accuracy: float | None, *, total_steps: int
) -> GuidanceState:
    """The state after a step whose controller input was `accuracy` (see `controller_accuracy`).

    The new length is used from the next step on. Schedules ignore `accuracy`; only they use `total_steps`.
    An adaptive controller keeps length and history where there is none, and raises ValueError if it is
    negative or not finite: success rates never are.
    """
    schedule = schedules.SCHEDULES.get(config.controller)
    if schedule is not None:
        length, history = schedule(config, state.step + 1, total_steps), ()
    elif accuracy is None:
        length, history = state.length, state.history
    elif not (math.isfinite(accuracy) and accuracy >= 0):
        raise ValueError(f"guidance controller input: wanted a finite accuracy of at least 0, got {accuracy}")
    else:
        length, history = ADAPTIVE[config.controller](config, state, accuracy)
    return GuidanceState(length=length, step=state.step + 1, history=history)


def state_for(config: GuidanceConfig, state: GuidanceState, *, ahead: int, total_steps: int) -> GuidanceState:
    """What the step `ahead` steps after the next one is guided by, as far as `state` can tell.

    A schedule's length is the one of that step, in a run of `total_steps`: also where sampling runs ahead,
    and where a run is longer than it was when `state` was saved. An adaptive controller's is its present one.
    """
    step = state.step + ahead
    schedule = schedules.SCHEDULES.get(config.controller)
    length = state.length if schedule is None else schedule(config, step, total_steps)
    return replace(state, step=step, length=length)


def controller_accuracy(config: GuidanceConfig, accuracy_R: Doubles, guided_R: Bools) -> float | None:
    """Success rate of the rollouts that `controller_input` names and that accuracy applies to (no NaN).

    None when there are none: every rollout is guided where unguided ones are wanted, say.
    """
    chosen = accuracy_R if config.controller_input == "all" else accuracy_R[~guided_R]
    mean = applicable_mean(chosen)
    return None if math.isnan(mean) else mean
