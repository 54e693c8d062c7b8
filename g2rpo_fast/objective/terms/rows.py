"""What terms are made of: ratios of tokens, sums over rows and groups.

Tokens of weight 0 take no part: their numbers are replaced before anything is computed with them.

Dimension key: N trained tokens of whole rows end to end, R rows, Q groups.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from g2rpo_fast.pieces import Tokens

if TYPE_CHECKING:
    from torch import Tensor


def counted(tokens: Tokens) -> Tensor:
    """[N] bool: tokens with a weight."""
    return tokens.weight_N != 0


def safe(value_N: Tensor, tokens: Tokens) -> Tensor:
    """0 in place of the values of tokens without weight, whatever these are."""
    return value_N.where(counted(tokens), 0.0)


def log_ratio(logp_N: Tensor, other_N: Tensor, tokens: Tokens) -> Tensor:
    """[N] logp - other; where `other` is NaN, 0 with the gradient of logp."""
    other_N = logp_N.detach().where(other_N.isnan(), other_N)
    return safe(logp_N, tokens) - safe(other_N, tokens)


def bounded(log_ratio: Tensor) -> Tensor:
    """Within +-20, as before every exp: no inf, no NaN; the gradient vanishes beyond."""
    from g2rpo_kernels.policy_loss.surrogates import MAX_LOG_RATIO

    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def _sums(value_N: Tensor, place_N: Tensor, number: int) -> Tensor:
    """[number] sums of the values at each place."""
    from g2rpo_kernels.policy_loss.objective import sums_by_row

    return sums_by_row(value_N.new_zeros(number), place_N, value_N)


def _ones(value_N: Tensor) -> Tensor:
    return value_N.new_ones(len(value_N))


def row_sums(value_N: Tensor, tokens: Tokens) -> Tensor:
    """[R] sums over each row's tokens with a weight."""
    return _sums(safe(value_N, tokens), tokens.row_N, len(tokens.group_R))


def row_means(value_N: Tensor, tokens: Tokens) -> Tensor:
    """[R] means over each row's tokens with a weight; 0 of a row without any."""
    return row_sums(value_N, tokens) / row_sums(_ones(value_N), tokens).clamp(min=1)


def unit_means(value_N: Tensor, tokens: Tokens) -> Tensor:
    """[N] the mean over the token's unit, of its tokens with a weight."""
    if tokens.unit_N is None:
        return row_means(value_N, tokens)[tokens.row_N]
    sum_U, count_U = (
        _sums(safe(value, tokens), tokens.unit_N, tokens.num_units) for value in (value_N, _ones(value_N))
    )
    return (sum_U / count_U.clamp(min=1))[tokens.unit_N]


def mean(value_N: Tensor, tokens: Tokens) -> Tensor:
    """0-dim, over all tokens with a weight."""
    return safe(value_N, tokens).sum() / counted(tokens).sum().clamp(min=1)


def group_sums(value_R: Tensor, tokens: Tokens) -> Tensor:
    """[Q] sums over each group's rows."""
    return _sums(value_R, tokens.group_R, tokens.num_groups)


def group_maxima(value_R: Tensor, tokens: Tokens) -> Tensor:
    """[Q] the largest of each group, detached; -inf of one without rows."""
    least_Q = value_R.new_full((1,), -math.inf).expand(tokens.num_groups)
    return least_Q.scatter_reduce(0, tokens.group_R, value_R.detach(), "amax")


class PaddedRows(NamedTuple):
    """Row tokens side by side: L = the most tokens of a row."""

    value_RL: Tensor
    """`fill` beyond a row's end."""
    row_N: Tensor
    place_N: Tensor

    def flat(self, value_RL: Tensor) -> Tensor:
        """[N] of what was made of them."""
        return value_RL[self.row_N, self.place_N]


def padded_rows(value_N: Tensor, tokens: Tokens, *, fill: float = 0.0) -> PaddedRows:
    """[N] -> [R, L], for what reads a row in its order; differentiable."""
    import torch

    size_R = torch.bincount(tokens.row_N, minlength=len(tokens.group_R))
    start_R = size_R.cumsum(0) - size_R
    place_N = torch.arange(len(value_N), device=value_N.device) - start_R[tokens.row_N]
    empty_RL = value_N.new_full((len(size_R), int(size_R.max())), fill)
    return PaddedRows(empty_RL.index_put((tokens.row_N, place_N), value_N), tokens.row_N, place_N)


def spread(value_N: Tensor, tokens: Tokens) -> Tensor:
    """[N] in [0, 1], detached: 0 at the row's least value, 1 at its most; 0 in rows of one value."""
    value_N = value_N.detach()
    least_R, most_R = (_extreme(value_N, tokens, which) for which in ("amin", "amax"))
    width_N = (most_R - least_R)[tokens.row_N]
    share_N = (value_N - least_R[tokens.row_N]) / width_N.where(width_N > 0, 1.0)
    return share_N.where(width_N > 0, 0.0)


def _extreme(value_N: Tensor, tokens: Tokens, which: str) -> Tensor:
    far = math.inf if which == "amin" else -math.inf
    start_R = value_N.new_full((len(tokens.group_R),), far)
    counted_N = value_N.masked_fill(~counted(tokens), far)
    return start_R.scatter_reduce(0, tokens.row_N, counted_N, which)
