"""Distance from a reference policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from g2rpo_kernels.policy_loss.kl import KLS
from g2rpo_kernels.policy_loss.surrogates import ratio_of
from torch import Tensor

from g2rpo_fast.bounds import Gt
from g2rpo_fast.objective.terms.rows import log_ratio, row_means
from g2rpo_fast.pieces import Stats, Term, Ties, Tokens


@dataclass(frozen=True, kw_only=True)
class Kl(Term):
    """coef w k(logp - ref_logp), k an estimator of KL(policy || reference): k1 = d, k2 = d^2 / 2,
    k3 = exp(-d) + d - 1 (GRPO's; http://joschu.net/blog/kl-approx.html).

    Times the ratio it is unbiased for samples of the old policy (DeepSeek-V3.2, arXiv 2512.02556). Evidence:
    code (TRL, verl).
    """

    use = "kl"
    coef: Annotated[float, Gt(0)] = 0.04
    """Its weight (GRPO's paper: 0.04)."""
    estimator: Literal["k1", "k2", "k3"] = "k3"
    times: Literal["one", "token", "sequence"] = "one"
    """What multiplies the estimate: nothing, the unclipped ratio of the token, or that of the sequence."""

    @property
    def ties(self) -> Ties:
        return "row" if self.times == "sequence" else "token"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"ref_logp"} if self.times == "one" else {"ref_logp", "old_logp"})

    def __call__(self, logp_N: Tensor, entropy_N: Tensor, tokens: Tokens) -> Tensor:
        kl_N = self.estimates(logp_N, tokens)
        if self.times != "one":
            log_ratio_N = log_ratio(logp_N, tokens.old_logp_N, tokens)
            if self.times == "sequence":
                log_ratio_N = row_means(log_ratio_N, tokens)[tokens.row_N]
            kl_N = kl_N * ratio_of(log_ratio_N)
        return self.coef * (tokens.weight_N * kl_N).sum()

    def estimates(self, logp_N: Tensor, tokens: Tokens) -> Tensor:
        """[N] of each token."""
        assert tokens.ref_logp_N is not None
        return KLS[self.estimator](log_ratio(logp_N, tokens.ref_logp_N, tokens))

    @torch.no_grad()
    def stats(self, logp_N: Tensor, tokens: Tokens) -> Stats:
        return {"kl": (self.estimates(logp_N, tokens).sum(), (tokens.weight_N != 0).sum())}

    def kernel(self) -> dict[str, Any]:
        settings = {"kl": self.estimator, "kl_coef": self.coef}
        return settings if self.times == "one" else settings | {"kl_times_ratio": True, "ratio": self.times}
