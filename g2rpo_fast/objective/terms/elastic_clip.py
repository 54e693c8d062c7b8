"""A clip range that grows with the advantage and with the group's disagreement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from g2rpo_fast.bounds import Ge, Gt
from g2rpo_fast.objective.terms.clip import Clip
from g2rpo_fast.objective.terms.rows import group_sums
from g2rpo_fast.pieces import Ties, Tokens

if TYPE_CHECKING:
    from g2rpo_kernels import Values
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ElasticClip(Clip):
    """As `clip`, low and high times (1 + by_magnitude min(|A|, most)) (1 + by_group 4 p (1 - p)).

    p = share of the group's rows with a reward above 0. ETR (arXiv 2601.03723). Evidence: approx: that bounds
    grow with both is the abstract's, this law is ours; both constants 0 = `clip`.
    """

    use = "elastic_clip"
    by_magnitude: Annotated[float, Ge(0)] = 0.5
    """How much |A| widens the range."""
    by_group: Annotated[float, Ge(0)] = 0.5
    """How much the group's disagreement widens it."""
    most: Annotated[float, Gt(0)] = 3.0
    """|A| beyond which it is no wider."""

    @property
    def ties(self) -> Ties:
        return "group"

    def values(self, logp_N: Tensor, log_ratio_N: Tensor, tokens: Tokens) -> Values:
        from g2rpo_kernels import Values
        from g2rpo_kernels.policy_loss.surrogates import ratio_of

        wider_N = 1 + self.by_magnitude * tokens.advantage_N.abs().clamp(max=self.most)
        right_R = (tokens.reward_R > 0).to(logp_N)
        p_Q = group_sums(right_R, tokens) / group_sums(right_R.new_ones(len(right_R)), tokens).clamp(min=1)
        wider_N = wider_N * (1 + self.by_group * 4 * p_Q * (1 - p_Q))[tokens.group_R][tokens.row_N]
        ratio_N = ratio_of(log_ratio_N)
        low_N, high_N = 1 - self.low * wider_N, 1 + self.high * wider_N
        minus_N = ratio_N.maximum(low_N)
        over_N = ratio_N < low_N
        if self.dual is not None:
            minus_N, over_N = minus_N.clamp(max=self.dual), over_N | (ratio_N > self.dual)
        return Values(ratio_N.minimum(high_N), minus_N, ratio_N > high_N, over_N)

    def kernel(self) -> None:
        return None
