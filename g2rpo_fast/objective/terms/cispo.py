"""The clipped factor of MiniMax-M1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from g2rpo_fast.bounds import Ge, Gt, InfinityToo
from g2rpo_fast.objective.terms.surrogate import RatioName, Surrogate


@dataclass(frozen=True, kw_only=True)
class Cispo(Surrogate):
    """-A sg(clip(r, 1 - low, 1 + high)) logp: every token keeps a gradient (CISPO, arXiv 2506.13585).

    Evidence: code (TRL, verl).
    """

    use = "cispo"
    record = "Cispo"
    low: Annotated[float, Ge(0), InfinityToo] = 0.2
    """The factor is at least 1 - low; 1 or more = at least 0."""
    high: Annotated[float, Gt(-1), InfinityToo] = 0.2
    """The factor is at most 1 + high; below 0: a cap below 1."""
    ratio: RatioName = "token"
    """Ratio per token, or one per sequence: exp of the mean log-ratio."""
