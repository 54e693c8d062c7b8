"""Several rounds as one: each piece's part in turn, each with its own memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from g2rpo_fast.pieces import Clock, Memory, More, Round, Scored
from g2rpo_fast.types import Ask

Memories = Mapping[str, Memory]
"""Name of a piece -> its memory."""


def first_round(rounds: Sequence[Round], asks: Sequence[Ask], memory: Memories, clock: Clock) -> list[Ask]:
    """What is asked first, from each prompt by itself."""
    asked = list(asks)
    for piece in rounds:
        asked = piece.first(asked, memory.get(piece.use), clock)
    return asked


def next_round(rounds: Sequence[Round], scored: Scored, memory: Memories, more: More) -> list[Ask]:
    """What is asked after the rounds so far: by the first piece that asks for something; [] ends them."""
    number = 1 + max(rollout.round for rollout in scored.rollouts)
    for piece in rounds:
        if asks := piece.again(scored, memory.get(piece.use), more):
            return [replace(ask, round=number) for ask in asks]
    return []


def settled(rounds: Sequence[Round], scored: Scored, memory: Memories) -> Scored:
    """The rows that are trained on."""
    for piece in rounds:
        scored = piece.settle(scored, memory.get(piece.use))
    return scored
