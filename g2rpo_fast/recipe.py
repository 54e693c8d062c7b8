"""The pieces of a run, as its configuration names them, and what they keep from step to step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from g2rpo_fast.config import Config
from g2rpo_fast.guidance import TracePrefix
from g2rpo_fast.pieces import (
    Clock,
    Credit,
    Memory,
    Outcome,
    Piece,
    Round,
    Scored,
    Selection,
    Shaping,
    Term,
    TokenCredit,
    Units,
    Weight,
)
from g2rpo_fast.prompt_store import PromptStore

Memories = Mapping[str, Memory]
"""Name of a piece -> what it keeps."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a step is made of (see `pieces`)."""

    selection: Selection
    rounds: tuple[Round, ...]
    shaping: tuple[Shaping, ...]
    credit: tuple[Credit, ...]
    units: Units
    token_credit: tuple[TokenCredit, ...]
    weights: tuple[Weight, ...]
    terms: tuple[Term, ...]

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """All of them, in the order of a step."""
        chains = (getattr(self, f.name) for f in fields(self))
        return tuple(piece for chain in chains for piece in (chain if isinstance(chain, tuple) else (chain,)))

    @property
    def repeats(self) -> bool:
        """Whether a step may ask the engine more than once."""
        return any(piece.repeats for piece in self.rounds)

    @property
    def needs_reference(self) -> bool:
        """Whether a term reads log-probabilities of a reference policy."""
        return any("ref_logp" in term.needs for term in self.terms)

    def first_memory(self) -> dict[str, Memory]:
        """Before the first step; of the pieces that keep something."""
        kept = {name_of(piece): piece.memory() for piece in self.pieces}
        return {name: memory for name, memory in kept.items() if memory is not None}

    def first_columns(self) -> dict[str, float]:
        """Of the prompt store before the first step."""
        return {name: value for piece in self.pieces for name, value in piece.columns().items()}

    def at(self, memory: Memories, clock: Clock) -> Recipe:
        """The pieces as they are in a step."""

        def now(piece: Any) -> Any:
            return piece.at(memory.get(name_of(piece)), clock)

        chains = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(
            self,
            **{
                name: tuple(map(now, chain)) if isinstance(chain, tuple) else now(chain)
                for name, chain in chains.items()
            },
        )

    def shaped(self, scored: Scored) -> Scored:
        """With the rewards that credit begins with."""
        for piece in self.shaping:
            scored = replace(scored, rewards=piece(scored))
        return scored

    def cut(self, scored: Scored) -> Scored:
        """With its rows in units."""
        return replace(scored, cuts=self.units(scored))

    def observed(self, memory: Memories, outcome: Outcome) -> dict[str, Memory]:
        """All memories after a step."""
        after = {name_of(piece): piece.observe(memory.get(name_of(piece)), outcome) for piece in self.pieces}
        return {**memory, **{name: kept for name, kept in after.items() if kept is not None}}

    def learned(self, store: PromptStore, outcome: Outcome) -> PromptStore:
        """The prompt store after a step."""
        for piece in self.pieces:
            store = piece.learned(store, outcome)
        return store

    def noted(self, memory: Memories, clock: Clock) -> dict[str, float]:
        """Metrics of what a step begins with."""
        notes: dict[str, float] = {}
        for piece in self.pieces:
            notes |= piece.notes(memory.get(name_of(piece)), clock)
        return notes


def name_of(piece: Piece) -> str:
    """What a piece's memory goes by: one of each name is in a run, `own` apart, which keeps nothing."""
    return piece.use if isinstance(piece, Round) else f"{piece.section}.{piece.use}"


def recipe_of(config: Config) -> Recipe:
    guidance: Sequence[Round] = (TracePrefix(config.guidance),) if config.guidance.enabled else ()
    return Recipe(
        selection=config.selection,
        rounds=(*guidance, *config.rounds),
        shaping=config.shaping,
        credit=config.credit,
        units=config.units,
        token_credit=config.token_credit,
        weights=config.weights,
        terms=config.terms,
    )
