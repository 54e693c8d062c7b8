"""The order in which prompts are visited: a pure function of how many were visited before, so that resuming
needs no other state.

Dimension key: P prompts of the data, one source after the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from g2rpo_fast.types import Longs


@dataclass(frozen=True, kw_only=True)
class Order:
    """Epoch after epoch, in a curriculum's order where there is one. Of a mixture each source has its own
    epochs, and the sources take turns by their weights."""

    seed: int = 0
    shuffle: bool = True
    level_P: Longs | None = field(default=None, compare=False)
    """Prompts of a lower level come before the others of their epoch; equal ones as they would without
    levels. None = no curriculum."""
    weights: tuple[float, ...] = ()
    """Of the sources of a mixture; () = all prompts are as of one source."""
    sizes: tuple[int, ...] = ()
    """How many prompts each source has."""

    def indices(self, num_prompts: int, cursor: int, count: int) -> list[int]:
        """Of the `count` prompts that follow the first `cursor` ones, any whole number from 0."""
        assert num_prompts > 0
        assert cursor >= 0
        if not self.weights:
            return self._of(slice(0, num_prompts), (), cursor, count)
        assert sum(self.sizes) == num_prompts
        taken, starts = turns(self.weights, cursor, count), np.cumsum((0, *self.sizes)).tolist()
        found = []
        for source, (start, size) in enumerate(zip(starts, self.sizes)):
            numbers = [number for one, number in taken if one == source]  # they follow each other
            part = slice(start, start + size)
            found.append(iter(self._of(part, (source,), min(numbers, default=0), len(numbers))))
        return [next(found[source]) for source, _ in taken]

    def _of(self, part: slice, key: tuple[int, ...], cursor: int, count: int) -> list[int]:
        """Of one source. Every epoch is a permutation of its prompts, drawn from (seed, epoch, *key); epochs
        follow each other without a gap, so a batch may end one and begin the next."""
        size, indices = part.stop - part.start, []
        while len(indices) < count:
            epoch, start = divmod(cursor + len(indices), size)
            order = self._epoch(part, (epoch, *key))
            indices.extend((part.start + order[start : start + count - len(indices)]).tolist())
        return indices

    def _epoch(self, part: slice, key: tuple[int, ...]) -> Longs:
        """The prompts of a source, from 0, in the order of one epoch."""
        order = np.arange(part.stop - part.start)
        if self.shuffle:
            order = np.random.default_rng([self.seed, *key]).permutation(len(order))
        if self.level_P is not None:
            order = order[np.argsort(self.level_P[part][order], kind="stable")]
        return order


def turns(weights: Sequence[float], cursor: int, count: int) -> list[tuple[int, int]]:
    """(source, how many of it came before) at the positions from `cursor` on.

    Pick j of a source of share w is due at (j + 1/2) / w, and picks are taken in the order in which they are
    due: where A is the sum of the weights as whole numbers, every A positions hold each source exactly by its
    weight. Weights are taken as they are written, 0.1 as one tenth. All in whole numbers: no rounding.
    """
    written = [Fraction(repr(float(weight))) for weight in weights]
    common = math.lcm(*(weight.denominator for weight in written))
    whole = [int(weight * common) for weight in written]
    total, slack, unit = sum(whole), len(whole), math.lcm(*whole)
    begin = max(0, cursor - slack)  # a time in positions, by which no more than `cursor` picks are due
    firsts = [-((total - 2 * weight * begin) // (2 * total)) for weight in whole]  # picks due before it
    due = sorted(
        ((2 * number + 1) * (unit // weight), source, number)
        for source, (weight, first) in enumerate(zip(whole, firsts))
        for number in range(first, first + count + 2 * slack)
    )
    skipped = cursor - sum(firsts)
    return [(source, number) for _, source, number in due[skipped : skipped + count]]
