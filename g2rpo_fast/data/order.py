"""The order in which prompts are visited: a pure function of how many were visited before, so that resuming
needs no other state."""

from __future__ import annotations

import numpy as np


def batch_indices(num_prompts: int, cursor: int, count: int, seed: int, shuffle: bool) -> list[int]:
    """Indices of the `count` prompts that follow the first `cursor` ones.

    Every epoch is a permutation of all prompts, drawn from (seed, epoch); epochs follow each other without a
    gap, so a batch may end one and begin the next. `cursor` may be any whole number from 0.
    """
    assert num_prompts > 0
    assert cursor >= 0
    indices: list[int] = []
    while len(indices) < count:
        epoch, start = divmod(cursor + len(indices), num_prompts)
        taken = epoch_order(num_prompts, epoch, seed, shuffle)[start : start + count - len(indices)]
        indices.extend(taken.tolist())
    return indices


def epoch_order(num_prompts: int, epoch: int, seed: int, shuffle: bool) -> np.ndarray:
    """[num_prompts] the order of one epoch."""
    if not shuffle:
        return np.arange(num_prompts)
    return np.random.default_rng([seed, epoch]).permutation(num_prompts)
