"""Entropy of forking tokens is kept in a band."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from g2rpo_fast.bounds import Ge, Gt, Le
from g2rpo_fast.objective.terms.rows import counted, padded_rows, row_sums
from g2rpo_fast.pieces import Term, Ties, Tokens

if TYPE_CHECKING:
    from torch import Tensor

NORMAL = 1.4826
"""A normal distribution's standard deviation over its median absolute deviation."""


@dataclass(frozen=True, kw_only=True)
class EntropyBand(Term):
    """sum of w m_t (below [low_i - H_t]_+ + above [H_t - high_i]_+), m_t = 1 for the row's forking tokens.

    Forking: the `share` of the row's tokens with the largest entropies. Of those entropies high_i = the
    median and low_i = max(0, high_i - 1.4826 MAD), without gradient. SPINE (arXiv 2511.17938). Evidence:
    notes; the coefficients were not seen: both are ours, the default of an entropy bonus.
    """

    use = "entropy_band"
    steers = "entropy"
    below: Annotated[float, Ge(0)] = 0.01
    """Weight of entropy below the band."""
    above: Annotated[float, Ge(0)] = 0.01
    """Weight of entropy above it."""
    share: Annotated[float, Gt(0), Le(1)] = 0.2
    """Of the row's tokens, that are forking."""

    @property
    def ties(self) -> Ties:
        return "row"

    def __call__(self, logp_N: Tensor, entropy_N: Tensor, tokens: Tokens) -> Tensor:
        known_N = entropy_N.detach().masked_fill(~counted(tokens), -math.inf)
        rows = padded_rows(known_N, tokens, fill=-math.inf)
        sorted_RL, order_RL = rows.value_RL.sort(dim=1, descending=True, stable=True)
        number_R = (self.share * row_sums(entropy_N.new_ones(len(entropy_N)), tokens)).round().clamp(min=1)
        rank_RL = order_RL.argsort(1)
        forking_N = rows.flat((rank_RL < number_R[:, None]).to(entropy_N))
        low_N, high_N = (edge_R[tokens.row_N] for edge_R in band(sorted_RL, number_R.long()))
        under_N, over_N = (low_N - entropy_N).relu(), (entropy_N - high_N).relu()
        hinge_N = self.below * under_N + self.above * over_N
        return (tokens.weight_N * hinge_N.where(counted(tokens) & (forking_N > 0), 0.0)).sum()


def band(sorted_RL: Tensor, number_R: Tensor) -> tuple[Tensor, Tensor]:
    """([R] low, [R] high) of the first `number_R` of each row's entropies, which descend."""
    import torch

    high_R = _median(sorted_RL, number_R)
    taken_RL = torch.arange(sorted_RL.shape[1], device=sorted_RL.device) < number_R[:, None]
    apart_RL = (sorted_RL - high_R[:, None]).abs().masked_fill(~taken_RL, math.inf).sort(dim=1).values
    scale_R = (NORMAL * _median(apart_RL, number_R)).clamp(min=1e-6)
    return (high_R - scale_R).clamp(min=0), high_R


def _median(sorted_RL: Tensor, number_R: Tensor) -> Tensor:
    """[R] of the first `number_R`, at least one."""
    middle = [sorted_RL.gather(1, place_R[:, None])[:, 0] for place_R in ((number_R - 1) // 2, number_R // 2)]
    return (middle[0] + middle[1]) / 2
