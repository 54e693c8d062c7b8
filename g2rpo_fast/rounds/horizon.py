"""Responses may be longer the further the run is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from g2rpo_fast.bounds import Ge, Gt, Le
from g2rpo_fast.pieces import Clock, Memory, Round
from g2rpo_fast.types import Ask


@dataclass(frozen=True, kw_only=True)
class Horizon(Round):
    """Most tokens of a response = ceil(M (begin + (1 - begin) k / (stages - 1))), M = rollout.max_tokens,
    in stage k = floor(stages step / steps) of the run; at least one token beside the given ones.

    FAKER-Air (arXiv 2511.22169), where a forecast is 3 + epoch steps long over 3 epochs. Evidence: code.
    """

    use = "horizon"
    begin: Annotated[float, Gt(0), Le(1)] = 0.6
    """Share of the most tokens in the first stage; there 3 of 5."""
    stages: Annotated[int, Ge(2)] = 3
    """Of the run, of equal length."""

    def share(self, clock: Clock) -> float:
        stage = min(self.stages * clock.step // max(clock.total_steps, 1), self.stages - 1)
        return self.begin + (1 - self.begin) * stage / (self.stages - 1)

    def notes(self, memory: Memory, clock: Clock) -> dict[str, float]:
        return {"rollout/horizon": float(self._most(clock, clock.max_tokens))}

    def first(self, asks: Sequence[Ask], memory: Memory, clock: Clock) -> list[Ask]:
        return [
            replace(ask, max_tokens=max(self._most(clock, ask.max_tokens), len(ask.given_ids) + 1))
            for ask in asks
        ]

    def _most(self, clock: Clock, tokens: int) -> int:
        return math.ceil(tokens * self.share(clock))
