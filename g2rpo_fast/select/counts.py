"""What a step's rows say of their prompts. Dimension key: R rows, P prompts of the store."""

from __future__ import annotations

import numpy as np

from g2rpo_fast.pieces import PromptStore, Scored
from g2rpo_fast.types import Doubles, Longs


def attempts(store: PromptStore, scored: Scored, value_R: Doubles) -> tuple[Longs, Doubles]:
    """(place of the prompt, value) of each row that was sampled from the plain prompt, without guidance or
    hint, and whose value is a number; in the order of the rows."""
    plain = [
        row for row, rollout in enumerate(scored.rollouts) if rollout.plain and value_R[row] == value_R[row]
    ]
    return store.places([scored.rollouts[row].prompt for row in plain]), value_R[plain]


def sums(store: PromptStore, scored: Scored, value_R: Doubles) -> tuple[Doubles, Doubles]:
    """([P] how many of these rows each prompt has, [P] the sum of their values)."""
    place, value = attempts(store, scored, value_R)
    seen_P = np.bincount(place, minlength=len(store.ids)).astype(np.float64)
    sum_P = np.bincount(place, weights=value, minlength=len(store.ids))
    return seen_P, np.asarray(sum_P, np.float64)
