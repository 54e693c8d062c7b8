"""The entropy bonus."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from g2rpo_fast.objective.terms.rows import safe
from g2rpo_fast.pieces import Term, Tokens

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Entropy(Term):
    """-coef w H, H the entropy (nats) of the token's distribution (A3C, arXiv 1602.01783). Evidence: code."""

    use = "entropy"
    steers = "entropy"
    coef: float = 0.01
    """Its weight (A3C: 0.01); above 0 a bonus, below a penalty."""

    def __call__(self, logp_N: Tensor, entropy_N: Tensor, tokens: Tokens) -> Tensor:
        return -self.coef * (tokens.weight_N * safe(entropy_N, tokens)).sum()

    def kernel(self) -> dict[str, Any]:
        return {"entropy_coef": self.coef}
