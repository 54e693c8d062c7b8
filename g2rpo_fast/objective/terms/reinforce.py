"""The log-probability itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from g2rpo_fast.objective.terms.surrogate import Surrogate


@dataclass(frozen=True, kw_only=True)
class Reinforce(Surrogate):
    """-A logp (Williams 1992): no ratio, hence no old policy. Evidence: code (TRL, verl)."""

    use = "reinforce"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset()

    def settings(self) -> dict[str, Any]:
        return {"surrogate": "reinforce"}
