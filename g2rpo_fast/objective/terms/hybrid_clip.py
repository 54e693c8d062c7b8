"""Token and sequence ratios, each clipped in a range of its own, then mixed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from g2rpo_fast.bounds import Ge, InfinityToo, Le
from g2rpo_fast.objective.terms.clip import Clip
from g2rpo_fast.objective.terms.rows import log_ratio, row_means, safe, spread
from g2rpo_fast.objective.terms.surrogate import weighed
from g2rpo_fast.pieces import Ties, Tokens

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class HybridClip(Clip):
    """m_t x `clip` of r_t with low and high + (1 - m_t) x `clip` of s_t with the sequence's bounds.

    s_t = sg(s_i) pi_t / sg(pi_t), s_i = exp of the row's mean log-ratio (GSPO's, in its form for tokens).
    DHPO (arXiv 2601.05607). Evidence: approx: what the entropy weighs, and whether each branch keeps its min,
    was not seen. Bounds: DAPO's for tokens, GSPO's for sequences. Metrics are of the token ratio.
    """

    use = "hybrid_clip"
    ratio: Literal["token"] = "token"
    """No other: the sequence's is beside it."""
    high: Annotated[float, Ge(0), InfinityToo] = 0.28
    sequence_low: Annotated[float, Ge(0), InfinityToo] = 3e-4
    """The sequence's ratio is clipped from below at 1 minus it."""
    sequence_high: Annotated[float, Ge(0), InfinityToo] = 4e-4
    """And from above at 1 plus it."""
    mix: Literal["average", "entropy"] = "average"
    """average: m_t = share; entropy: m_t = the token's entropy, 0 at the row's least, 1 at its most."""
    share: Annotated[float, Ge(0), Le(1)] = 0.5
    """Of the token branch in the average: 1 = GRPO, 0 = GSPO."""

    @property
    def ties(self) -> Ties:
        return "row"

    def __call__(self, logp_N: Tensor, entropy_N: Tensor, tokens: Tokens) -> Tensor:
        from g2rpo_kernels import Clip as ClipRecord
        from g2rpo_kernels.policy_loss.surrogates import ratio_of

        by_token_N = log_ratio(logp_N, tokens.old_logp_N, tokens)
        row_N = row_means(by_token_N.detach(), tokens)[tokens.row_N]
        safe_N = safe(logp_N, tokens)
        by_row_N = row_N + safe_N - safe_N.detach()
        token = self.surrogate(ratio_of(by_token_N), safe_N)
        whole = ClipRecord(low=self.sequence_low, high=self.sequence_high)(ratio_of(by_row_N), safe_N)
        mix_N = spread(entropy_N, tokens) if self.mix == "entropy" else self.share
        plus_N = mix_N * token.plus + (1 - mix_N) * whole.plus
        minus_N = mix_N * token.minus + (1 - mix_N) * whole.minus
        return weighed(plus_N, minus_N, tokens)

    def kernel(self) -> None:
        return None
