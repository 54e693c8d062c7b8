"""The adaptive controllers: guidance length l from the accuracies r of the steps so far.

    paper     every step   l <- l * mean(r[k-1], ..., r[k-m]) / r[k],  m = min(T, k)      (arXiv 2508.13023)
    official  every third  l <- int(l * (p / r[k])),  p = mean of the two steps before    (the released code)
    windowed  every T      l <- l * (mean of window n-1 + eps) / (mean of window n + eps)

Accuracy up: shorter guidance; down: longer. Each rule maps (config, state, accuracy of the step just taken)
to (l of the next step, history to keep); all keep l within [length_min, length_max].
"""

from __future__ import annotations

from g2rpo_fast.guidance.config import GuidanceConfig
from g2rpo_fast.guidance.state import GuidanceState

Update = tuple[float, tuple[float, ...]]


def paper(config: GuidanceConfig, state: GuidanceState, accuracy: float) -> Update:
    """The published rule, to the letter where it is defined.

    Where it is not: with no step before, l is kept; at r[k] = 0 (a division by zero), whether there were
    successes before or not, l grows by `max_factor`. l is a float, so l = 1 is left by any growth, however
    small. Literal and fragile: a success after T failures has ratio 0 and sends l to `length_min`, and a
    window over a single step does not telescope, so l walks at random with batch noise. `windowed` does
    neither.
    """
    history = (*state.history, accuracy)[-config.window :]
    if not state.history:
        return state.length, history
    ratio = _mean(state.history) / accuracy if accuracy > 0 else config.max_factor
    return _clamp(config, state.length * ratio), history


def official(config: GuidanceConfig, state: GuidanceState, accuracy: float) -> Update:
    """The released three-step cycle, to the letter: two steps are recorded, the third is compared with them.

    Integer truncation included: from l = 1 only a ratio of 2 or more lengthens, so l = 1 is nearly absorbing.
    If either side of the comparison is 0, or both are equal, l is kept: runs that only fail never lengthen.
    Like the released code, the division comes before the multiplication (they truncate differently).
    """
    if len(state.history) < 2:
        return state.length, (*state.history, accuracy)
    before = _mean(state.history)
    if accuracy <= 0 or before <= 0 or accuracy == before:
        return state.length, ()
    scaled = state.length * (before / accuracy)
    if accuracy < before:
        return float(int(min(scaled, config.upper))), ()
    return float(max(int(scaled), int(config.lower))), ()


def windowed(config: GuidanceConfig, state: GuidanceState, accuracy: float) -> Update:
    """Window mean over window mean, once per T steps, smoothed, each factor in [1/max_factor, max_factor].

    The factors telescope: while no bound binds, l = l_0 * (first window + eps) / (present window + eps), so
    batch noise does not accumulate. Two windows in a row without one success, where the ratio says nothing
    (it is 1), lengthen by `max_factor`: otherwise any l, 1 included, would be kept for ever.
    """
    history = (*state.history, accuracy)
    if len(history) % config.window or len(history) == config.window:
        return state.length, history
    before, now = history[: config.window], history[config.window :]
    factor = (_mean(before) + config.eps) / (_mean(now) + config.eps)
    if not any(history):
        factor = config.max_factor
    factor = min(max(factor, 1 / config.max_factor), config.max_factor)
    return _clamp(config, state.length * factor), now


def _mean(values: tuple[float, ...]) -> float:
    return sum(values) / len(values)


def _clamp(config: GuidanceConfig, length: float) -> float:
    return min(max(length, config.lower), config.upper)
