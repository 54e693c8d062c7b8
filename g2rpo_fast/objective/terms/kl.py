"""Distance from a reference policy."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from g2rpo_fast.bounds import Ge, Gt, Lt
from g2rpo_fast.objective.terms.rows import log_ratio, row_means
from g2rpo_fast.pieces import Clock, Memory, Outcome, Stats, Term, Ties, Tokens

if TYPE_CHECKING:
    from torch import Tensor


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
    """Of the divergence, from one sampled token."""
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
            from g2rpo_kernels.policy_loss.surrogates import ratio_of

            log_ratio_N = log_ratio(logp_N, tokens.old_logp_N, tokens)
            if self.times == "sequence":
                log_ratio_N = row_means(log_ratio_N, tokens)[tokens.row_N]
            kl_N = kl_N * ratio_of(log_ratio_N)
        return self.coef * (tokens.weight_N * kl_N).sum()

    def estimates(self, logp_N: Tensor, tokens: Tokens) -> Tensor:
        """[N] of each token."""
        from g2rpo_kernels.policy_loss.kl import KLS

        assert tokens.ref_logp_N is not None
        return KLS[self.estimator](log_ratio(logp_N, tokens.ref_logp_N, tokens))

    def stats(self, logp_N: Tensor, tokens: Tokens) -> Stats:
        return {"kl": (self.estimates(logp_N.detach(), tokens).sum(), (tokens.weight_N != 0).sum())}

    def kernel(self) -> dict[str, Any]:
        settings = {"kl": self.estimator, "kl_coef": self.coef}
        return settings if self.times == "one" else settings | {"kl_times_ratio": True, "ratio": self.times}


@dataclass(frozen=True, kw_only=True)
class KlControlled(Kl):
    """`kl` whose weight follows the distance: after each step I <- keep I + e, then coef <- clip(coef
    exp(kp e + ki I), low, high), e = the step's mean KL of a token - target.

    FAKER-Air (arXiv 2511.22169). Evidence: code; there the KL of two Gaussians, averaged over steps.
    """

    use = "kl_controlled"
    coef: Annotated[float, Gt(0)] = 5e-4
    """Before the first step; then it is the memory's."""
    target: Annotated[float, Ge(0)] = 10.0
    """Nats a token."""
    kp: Annotated[float, Ge(0)] = 0.05
    """Proportional gain."""
    ki: Annotated[float, Ge(0)] = 0.01
    """Integral gain."""
    keep: Annotated[float, Ge(0), Lt(1)] = 0.95
    """Of the integral, from step to step."""
    low: Annotated[float, Gt(0)] = 1e-6
    """Least coefficient."""
    high: Annotated[float, Gt(0)] = 1e-2
    """Largest coefficient."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.high < self.low:
            raise ValueError(f"terms.{self.use}.high: wanted at least low = {self.low:g}, got {self.high:g}")

    def memory(self) -> Memory:
        return {"coef": self.coef, "sum": 0.0}

    def at(self, memory: Memory, clock: Clock) -> KlControlled:
        return replace(self, coef=memory["coef"])

    def notes(self, memory: Memory, clock: Clock) -> dict[str, float]:
        return {"terms/kl_coef": memory["coef"]}

    def observe(self, memory: Memory, outcome: Outcome) -> Memory:
        """An update without a token tells nothing."""
        error = outcome.stats.get("update/kl", math.nan) - self.target
        if not math.isfinite(error):
            return memory
        summed = self.keep * memory["sum"] + error
        change = math.exp(min(max(self.kp * error + self.ki * summed, -20.0), 20.0))
        return {"coef": min(max(memory["coef"] * change, self.low), self.high), "sum": summed}
