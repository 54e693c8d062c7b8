"""The log-probability itself."""

from __future__ import annotations

from dataclasses import dataclass

from g2rpo_fast.objective.terms.surrogate import Surrogate


@dataclass(frozen=True, kw_only=True)
class Reinforce(Surrogate):
    """-A logp (Williams 1992): no ratio, hence no old policy. Evidence: code (TRL, verl)."""

    use = "reinforce"
    record = "Reinforce"
    reads_ratio = False
