"""The last outcomes of each prompt: the success rate that group sizes are made from.

Dimension key: P prompts of the store, C prompts chosen.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from g2rpo_fast.bounds import Ge, Le
from g2rpo_fast.pieces import Chosen, Clock, Outcome, PromptStore
from g2rpo_fast.select.counts import attempts
from g2rpo_fast.select.in_order import InOrder
from g2rpo_fast.types import Doubles, Longs, Prompt

BITS, NUMBER = "recent_outcomes", "recent_number"
"""Columns: outcomes as the bits of a whole number, the last one lowest; and how many there are."""


@dataclass(frozen=True, kw_only=True)
class Sized(InOrder):
    """The prompts of the data's order, groups as large as `sizes` says: `count` times `size` rollouts in all.

    A prompt with fewer than `known` outcomes among its last `window` gets `size`. Counted are rollouts from
    the plain prompt, without guidance or hint.
    """

    least: Annotated[int, Ge(1)] = 2
    """Rollouts of any prompt that is known; no more than the group size."""
    most: Annotated[int, Ge(1)] = 128
    """No less than the group size."""
    window: Annotated[int, Ge(1), Le(52)] = 16
    """Outcomes of a prompt that are remembered."""
    known: Annotated[int, Ge(1)] = 8
    """Outcomes that make a success rate."""

    def columns(self) -> dict[str, float]:
        return {BITS: 0.0, NUMBER: 0.0}

    def choose(
        self, prompts: Sequence[Prompt], store: PromptStore, clock: Clock, *, count: int, size: int
    ) -> list[Chosen]:
        chosen = super().choose(prompts, store, clock, count=count, size=size)
        rate_C = self.rates(store, store.places([each.prompt for each in chosen]))
        size_C = np.full(count, size)
        seen = np.flatnonzero(~np.isnan(rate_C))
        if len(seen):
            least, most = min(self.least, size), max(self.most, size)
            size_C[seen] = self.sizes(rate_C[seen], len(seen) * size, least, most)
        assert size_C.sum() == count * size
        return [Chosen(prompt=each.prompt, size=int(n)) for each, n in zip(chosen, size_C, strict=True)]

    @abstractmethod
    def sizes(self, rate_C: Doubles, budget: int, least: int, most: int) -> Longs:
        """[C] of success rates, each from `least` to `most`, which sum to `budget`."""

    def rates(self, store: PromptStore, places: Longs) -> Doubles:
        """[C] success rate of the prompts at `places`; NaN = not known."""
        right_C = np.asarray(
            [int(bits).bit_count() for bits in store.columns[BITS][places].tolist()], np.float64
        )
        number_C = store.columns[NUMBER][places]
        return np.where(number_C >= min(self.known, self.window), right_C / np.maximum(number_C, 1), np.nan)

    def learned(self, store: PromptStore, outcome: Outcome) -> PromptStore:
        bits_P, number_P = (store.columns[name].copy() for name in (BITS, NUMBER))
        places, success = attempts(store, outcome.scored, outcome.scored.rewards.accuracy_R)
        for place, right in zip(places.tolist(), success.tolist(), strict=True):
            bits_P[place] = (int(bits_P[place]) * 2 + int(right)) % 2**self.window
            number_P[place] = min(number_P[place] + 1, self.window)
        return store.put(**{BITS: bits_P, NUMBER: number_P})


def dealt(size_C: Longs, extra: int, order: Sequence[Longs], most: int) -> Longs:
    """[C] sizes with `extra` more: evenly over the prompts of the first set in `order` up to `most`, what is
    left over those of the next."""
    size_C = size_C.copy()
    for chosen in order:
        while extra and len(chosen := chosen[size_C[chosen] < most]):
            each = min(max(extra // len(chosen), 1), int(most - size_C[chosen].max()))
            given = chosen[: min(len(chosen), extra)]
            size_C[given] += each
            extra -= each * len(given)
    return size_C
