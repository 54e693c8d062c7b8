"""The guidance controller: one state per run, advanced once per step by the rule that the config names."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from g2rpo_fast.guidance import adaptive, schedules
from g2rpo_fast.guidance.config import GuidanceConfig
from g2rpo_fast.guidance.state import GuidanceState
from g2rpo_fast.types import Bools, Doubles

Rule = Callable[[GuidanceConfig, GuidanceState, float, int], adaptive.Update]
"""(config, state, accuracy, total_steps) -> (l of the next step, history to keep)."""


def _adaptive(rule: Callable[[GuidanceConfig, GuidanceState, float], adaptive.Update]) -> Rule:
    return lambda config, state, accuracy, total_steps: rule(config, state, accuracy)


def _scheduled(schedule: schedules.Schedule) -> Rule:
    return lambda config, state, accuracy, total_steps: (schedule(config, state.step + 1, total_steps), ())


CONTROLLERS: dict[str, Rule] = {
    "paper": _adaptive(adaptive.paper),
    "official": _adaptive(adaptive.official),
    "windowed": _adaptive(adaptive.windowed),
    **{name: _scheduled(schedule) for name, schedule in schedules.SCHEDULES.items()},
}


def initial_state(config: GuidanceConfig) -> GuidanceState:
    """Before the first step."""
    return GuidanceState(length=config.first)


def advance(
    config: GuidanceConfig, state: GuidanceState, accuracy: float, *, total_steps: int
) -> GuidanceState:
    """The state after a step whose controller input was `accuracy` (see `controller_accuracy`).

    The new length is used from the next step on. Schedules ignore `accuracy`; only they use `total_steps`.
    ValueError if `accuracy` is negative or not finite.
    """
    if not (math.isfinite(accuracy) and accuracy >= 0):
        raise ValueError(f"guidance controller input: wanted a finite accuracy of at least 0, got {accuracy}")
    length, history = CONTROLLERS[config.controller](config, state, accuracy, total_steps)
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


def controller_accuracy(config: GuidanceConfig, accuracy_R: Doubles, guided_R: Bools) -> float:
    """Mean accuracy of the rollouts that `controller_input` names.

    ValueError when there are none: no rollouts at all, or every one guided where unguided ones are wanted.
    """
    chosen = accuracy_R if config.controller_input == "all" else accuracy_R[~guided_R]
    if not len(chosen):
        raise ValueError(
            f'guidance.controller_input="{config.controller_input}": wanted at least one such rollout in a '
            f"step, got 0 of {len(accuracy_R)}"
        )
    return float(chosen.mean())
