"""The soft gate of SAPO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from g2rpo_fast.bounds import Gt
from g2rpo_fast.objective.terms.surrogate import RatioName, Surrogate


@dataclass(frozen=True, kw_only=True)
class Sapo(Surrogate):
    """-A (4 / tau) sigmoid(tau (r - 1)), tau by the advantage's sign (SAPO, arXiv 2511.20347).

    Evidence: code (TRL).
    """

    use = "sapo"
    record = "Sapo"
    tau_pos: Annotated[float, Gt(0)] = 1.0
    """Temperature of the gate for positive advantages."""
    tau_neg: Annotated[float, Gt(0)] = 1.05
    """Temperature of the gate for negative advantages."""
    ratio: RatioName = "token"
    """Ratio per token, or one per sequence: exp of the mean log-ratio."""
