"""The smooth weight of VESPO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from g2rpo_fast.bounds import Gt
from g2rpo_fast.objective.terms.surrogate import Surrogate


@dataclass(frozen=True, kw_only=True)
class Vespo(Surrogate):
    """-A sg(phi(r)) logp, phi(r) = r^k exp(rate (1 - r)), r the product of the row's ratios.

    k and rate by the advantage's sign (VESPO, arXiv 2602.10693). Evidence: code (TRL).
    """

    use = "vespo"
    record = "Vespo"
    ratio = "product"
    k_pos: Annotated[float, Gt(0)] = 2.0
    """Power, where the advantage is positive."""
    rate_pos: Annotated[float, Gt(0)] = 3.0
    """Rate of decay, where it is positive."""
    k_neg: Annotated[float, Gt(0)] = 3.0
    """Power, where it is negative."""
    rate_neg: Annotated[float, Gt(0)] = 2.0
    """Rate of decay, where it is negative."""
