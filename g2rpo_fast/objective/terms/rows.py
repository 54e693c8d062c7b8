"""What terms are made of: ratios of tokens, sums over rows and groups.

Tokens of weight 0 take no part: their numbers are replaced before anything is computed with them.

Dimension key: N trained tokens of whole rows end to end, R rows, Q groups.
"""

from __future__ import annotations

import torch
from g2rpo_kernels.policy_loss.objective import sums_by_row
from g2rpo_kernels.policy_loss.surrogates import MAX_LOG_RATIO
from torch import Tensor

from g2rpo_fast.pieces import Tokens


def counted(tokens: Tokens) -> Tensor:
    """[N] bool: tokens with a weight."""
    return tokens.weight_N != 0


def safe(value_N: Tensor, tokens: Tokens) -> Tensor:
    """0 in place of the values of tokens without weight, whatever these are."""
    return torch.where(counted(tokens), value_N, 0.0)


def log_ratio(logp_N: Tensor, other_N: Tensor, tokens: Tokens) -> Tensor:
    """[N] logp - other; where `other` is NaN, 0 with the gradient of logp."""
    other_N = torch.where(other_N.isnan(), logp_N.detach(), other_N)
    return safe(logp_N, tokens) - safe(other_N, tokens)


def bounded(log_ratio: Tensor) -> Tensor:
    """Within +-20, as before every exp: no inf, no NaN; the gradient vanishes beyond."""
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def row_sums(value_N: Tensor, tokens: Tokens) -> Tensor:
    """[R] sums over each row's tokens with a weight."""
    zeros_R = value_N.new_zeros(len(tokens.group_R))
    return sums_by_row(zeros_R, tokens.row_N, safe(value_N, tokens))


def row_means(value_N: Tensor, tokens: Tokens) -> Tensor:
    """[R] means over each row's tokens with a weight; 0 of a row without any."""
    return row_sums(value_N, tokens) / row_sums(torch.ones_like(value_N), tokens).clamp(min=1)


def mean(value_N: Tensor, tokens: Tokens) -> Tensor:
    """0-dim, over all tokens with a weight."""
    return safe(value_N, tokens).sum() / counted(tokens).sum().clamp(min=1)


def group_sums(value_R: Tensor, tokens: Tokens) -> Tensor:
    """[Q] sums over each group's rows."""
    return sums_by_row(value_R.new_zeros(tokens.num_groups), tokens.group_R, value_R)


def group_maxima(value_R: Tensor, tokens: Tokens) -> Tensor:
    """[Q] the largest of each group, detached; -inf of one without rows."""
    least_Q = torch.full_like(value_R[:1], -torch.inf).expand(tokens.num_groups)
    return least_Q.scatter_reduce(0, tokens.group_R, value_R.detach(), "amax")
