"""The pieces of a run, as its configuration names them."""

from __future__ import annotations

from dataclasses import dataclass

from g2rpo_fast.config import Config
from g2rpo_fast.credit import chain_of
from g2rpo_fast.guidance import TracePrefix
from g2rpo_fast.pieces import Credit, Round, Selection
from g2rpo_fast.select import InOrder


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a step is made of (see `pieces`)."""

    selection: Selection
    rounds: tuple[Round, ...]
    credit: tuple[Credit, ...]

    @property
    def repeats(self) -> bool:
        """Whether a step may ask the engine more than once."""
        return any(piece.repeats for piece in self.rounds)


def recipe_of(config: Config) -> Recipe:
    guidance = (TracePrefix(config.guidance),) if config.guidance.enabled else ()
    credit = chain_of(
        scale=config.objective.advantage_scale,
        aggregation=config.objective.advantage_aggregation,
        eps=config.objective.advantage_eps,
    )
    return Recipe(selection=InOrder(), rounds=guidance, credit=credit)
