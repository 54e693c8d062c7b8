"""A clipped ratio with the token's confidence inside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from g2rpo_fast.bounds import Ge, Gt
from g2rpo_fast.objective.terms.clip import Clip
from g2rpo_fast.pieces import Tokens

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ConfidentClip(Clip):
    """As `clip`, of w_t r_t, w_t = clip(alpha (sigmoid(tau pi_t) - mu), least, most), pi_t of the old policy.

    TR-GRPO's equation taken literally (arXiv 2511.00066): a confident token with A > 0 begins beyond the
    bound and has no gradient. The weight `confident` stands outside. Evidence: approx.
    """

    use = "confident_clip"
    alpha: Annotated[float, Gt(0)] = 2.0
    """Scale of the sigmoid."""
    tau: Annotated[float, Gt(0)] = 9.0
    """How fast it rises with the probability."""
    mu: Annotated[float, Ge(0)] = 0.25
    """Taken off the sigmoid."""
    least: Annotated[float, Gt(0)] = 1.0
    """Smallest weight."""
    most: Annotated[float, Gt(0)] = 1.4
    """Largest weight."""

    def log_ratio(self, logp_N: Tensor, tokens: Tokens) -> Tensor:
        old_N = logp_N.detach().where(tokens.old_logp_N.isnan(), tokens.old_logp_N)
        gate_N = (self.tau * old_N.exp()).sigmoid()
        weight_N = (self.alpha * (gate_N - self.mu)).clamp(self.least, self.most)
        return super().log_ratio(logp_N, tokens) + weight_N.log()

    def kernel(self) -> None:
        return None
