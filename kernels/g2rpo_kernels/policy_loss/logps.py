"""The policy loss from log-probabilities that are already there. Dimension key: T trained edges."""

from __future__ import annotations

import torch
from torch import Tensor

from g2rpo_kernels.checks import check_floating, check_tensors
from g2rpo_kernels.policy_loss.records import Edges, Objective, PolicyLoss, checked_edges, explained
from g2rpo_kernels.policy_loss.reference import loss_of


def policy_loss_of_logps(
    logp_T: Tensor, edges: Edges, objective: Objective, *, entropy_T: Tensor | None = None
) -> PolicyLoss:
    """`policy_loss` without its first half: plain PyTorch on vectors, on any device, every objective.

    Args:
        logp_T: [T] floating log-probabilities of the targets; differentiable.
        edges, objective: as in `policy_loss`; edges are taken to the dtype and device of `logp_T`.
        entropy_T: [T]; differentiable; wanted with an entropy_coef, else a metric only (None = 0).

    Returns:
        As `policy_loss`.

    Raises:
        ValueError: shapes that do not fit; entropy_T missing; as `policy_loss`.
    """
    given = {"logp_T": logp_T, "entropy_T": entropy_T}
    check_tensors(given)
    check_floating(given)
    if logp_T.dim() != 1 or (entropy_T is not None and entropy_T.shape != logp_T.shape):
        got = None if entropy_T is None else list(entropy_T.shape)
        raise ValueError(f"logp_T, entropy_T: wanted [T] and [T], got {list(logp_T.shape)} and {got}")
    if objective.entropy_coef and entropy_T is None:
        raise ValueError(f"entropy_T: wanted with entropy_coef={objective.entropy_coef}, got None")
    checked_edges(edges, objective, len(logp_T))
    entropy_T = torch.zeros_like(logp_T) if entropy_T is None else entropy_T
    return explained(loss_of(logp_T, entropy_T, edges, objective), edges)
