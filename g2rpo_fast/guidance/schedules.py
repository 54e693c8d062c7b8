"""Guidance length by schedule: from l_0 = length_init at the first step to l_1 = length_final at the last.

With x = (steps finished) / (steps in all - 1), so that x = 0 at the first step and 1 at the last:

    fixed    l_0
    linear   l_1 + (l_0 - l_1) (1 - x)                      the released rule-based decay, with l_1 = 0
    cosine   l_1 + (l_0 - l_1) (1 + cos(pi x)) / 2
    concave  l_1 + (l_0 - l_1) (1 - x) ** concave_power     slow first, fast at the end
    step     max(l_1, l_0 * step_factor ** (steps finished // step_every))

A run of one step takes it at l_0. A schedule may end below `length_min` (0 = no guidance): that bound is the
adaptive controllers'.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from g2rpo_fast.guidance.config import GuidanceConfig

Schedule = Callable[[GuidanceConfig, int, int], float]
"""(config, 0-based step, steps in all) -> l of that step."""


def fixed(config: GuidanceConfig, step: int, total_steps: int) -> float:
    """l_0 throughout."""
    return config.first


def linear(config: GuidanceConfig, step: int, total_steps: int) -> float:
    """Straight from l_0 to l_1."""
    return _between(config, 1 - _progress(step, total_steps))


def cosine(config: GuidanceConfig, step: int, total_steps: int) -> float:
    """Half a cosine from l_0 to l_1: flat at both ends."""
    return _between(config, (1 + math.cos(math.pi * _progress(step, total_steps))) / 2)


def concave(config: GuidanceConfig, step: int, total_steps: int) -> float:
    """From l_0 to l_1, slowly first and fast at the end."""
    return _between(config, (1 - _progress(step, total_steps)) ** config.concave_power)


def step(config: GuidanceConfig, step: int, total_steps: int) -> float:
    """Cut by `step_factor` every `step_every` steps, never below l_1."""
    cut = config.first * config.step_factor ** (step // config.step_every)
    return max(config.length_final, cut)


def _progress(step: int, total_steps: int) -> float:
    """0 at the first step, 1 at the last (and after it, in a run that was extended)."""
    return min(step / max(total_steps - 1, 1), 1.0)


def _between(config: GuidanceConfig, left: float) -> float:
    """Exactly l_0 at 1 and l_1 at 0."""
    return config.length_final * (1 - left) + config.first * left


SCHEDULES: dict[str, Schedule] = {
    "fixed": fixed,
    "linear": linear,
    "cosine": cosine,
    "step": step,
    "concave": concave,
}
