"""Rows that were sampled from another context than they are trained in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from g2rpo_fast.bounds import Gt, Lt
from g2rpo_fast.objective.terms.clip import Clip
from g2rpo_fast.objective.terms.rows import counted, log_ratio
from g2rpo_fast.pieces import Ties, Tokens
from g2rpo_fast.types import SOURCES

if TYPE_CHECKING:
    from g2rpo_kernels import Values
    from torch import Tensor

SMALLEST = 1e-4
"""That gamma becomes."""


@dataclass(frozen=True, kw_only=True)
class Shaped(Clip):
    """Off-policy rows: -A rho / (rho + gamma), rho = exp(logp - rollout_logp), never clipped; others: clip.

    rho compares the policy in the training context with what the engine said in the sampling context (with
    the hint). gamma: given, or a quantile of the batch's own rho, at least 1e-4. Guide (arXiv 2506.13923);
    the shape is LUFFY's (2504.14945). Evidence: code.
    """

    use = "shaped"
    gamma: Annotated[float, Gt(0)] | None = None
    """None = the quantile."""
    quantile: Annotated[float, Gt(0), Lt(1)] = 0.9
    """Of the batch's off-policy ratios, that gamma becomes."""

    @property
    def ties(self) -> Ties:
        return "batch" if self.gamma is None else super().ties

    def values(self, logp_N: Tensor, log_ratio_N: Tensor, tokens: Tokens) -> Values:
        from g2rpo_kernels import Values
        from g2rpo_kernels.policy_loss.surrogates import ratio_of

        off_N = (tokens.source_R == SOURCES.index("off_policy"))[tokens.row_N] & counted(tokens)
        rho_N = ratio_of(log_ratio(logp_N, tokens.rollout_logp_N, tokens))
        shaped_N = rho_N / (rho_N + self.gamma_of(rho_N.detach()[off_N]))
        plus, minus, *clipped = super().values(logp_N, log_ratio_N, tokens)
        chosen = (shaped_N.where(off_N, value) for value in (plus, minus))
        return Values(*chosen, *(None if bound is None else bound & ~off_N for bound in clipped))

    def gamma_of(self, rho_F: Tensor) -> Tensor | float:
        """From the ratios of the off-policy tokens; any number where there are none."""
        if self.gamma is not None or not len(rho_F):
            return self.gamma or 1.0
        return rho_F.quantile(self.quantile).clamp(min=SMALLEST)

    def kernel(self) -> None:
        return None
