"""The pieces of a run, as its configuration names them."""

from __future__ import annotations

from dataclasses import dataclass

from g2rpo_fast.config import Config
from g2rpo_fast.guidance import TracePrefix
from g2rpo_fast.pieces import Credit, Round, Selection, Term, TokenCredit, Weight


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a step is made of (see `pieces`)."""

    selection: Selection
    rounds: tuple[Round, ...]
    credit: tuple[Credit, ...]
    token_credit: tuple[TokenCredit, ...]
    weights: tuple[Weight, ...]
    terms: tuple[Term, ...]

    @property
    def repeats(self) -> bool:
        """Whether a step may ask the engine more than once."""
        return any(piece.repeats for piece in self.rounds)

    @property
    def needs_reference(self) -> bool:
        """Whether a term reads log-probabilities of a reference policy."""
        return any("ref_logp" in term.needs for term in self.terms)


def recipe_of(config: Config) -> Recipe:
    guidance = (TracePrefix(config.guidance),) if config.guidance.enabled else ()
    return Recipe(
        selection=config.selection,
        rounds=(*guidance, *config.rounds),
        credit=config.credit,
        token_credit=config.token_credit,
        weights=config.weights,
        terms=config.terms,
    )
