"""A small problem for `token_loss` and losses that tie tokens, rows and the batch together."""

from __future__ import annotations

from typing import TypedDict

import torch
from g2rpo_kernels.token_loss import Ties
from torch import Tensor

from drawn import normal

T, V, D = 24, 13, 5
ROW_T = torch.arange(T) // 6


ADVANTAGE_T, OLD_T, SCORE_B = normal(T, seed=3), normal(T, seed=4) - 2.5, normal(4, seed=5)


def example(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Leaves, and targets."""
    hidden, head = normal(T, D, seed=1), normal(V, D, seed=2)
    return hidden.to(dtype).requires_grad_(), head.to(dtype).requires_grad_(), torch.arange(T) % V


def of_tokens(logp_T: Tensor, entropy_T: Tensor) -> Tensor:
    return -(torch.sigmoid((logp_T - OLD_T.to(logp_T)).exp() - 1) * ADVANTAGE_T.to(logp_T)).mean()


def with_entropy(logp_T: Tensor, entropy_T: Tensor) -> Tensor:
    return of_tokens(logp_T, entropy_T) - 0.1 * entropy_T.mean()


def of_rows(logp_T: Tensor, entropy_T: Tensor) -> Tensor:
    mean_B = logp_T.new_zeros(4).index_add(0, ROW_T, logp_T) / 6
    return -(SCORE_B.to(logp_T) * mean_B.exp()).sum()


def of_batch(logp_T: Tensor, entropy_T: Tensor) -> Tensor:
    return (torch.softmax(logp_T, 0) * ADVANTAGE_T.to(logp_T)).sum()


class Tied(TypedDict, total=False):
    """Settings of `token_loss` that say what its loss ties together."""

    ties: Ties
    row_T: Tensor
    row_cuts: tuple[int, ...]


ROWS: Tied = {"ties": "row", "row_T": ROW_T}
BATCH: Tied = {"ties": "batch"}
