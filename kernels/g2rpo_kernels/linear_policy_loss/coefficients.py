"""Coefficients c = dL/dlogp and e = dL/dH of edges, by autograd of the objective on vectors.

Where each edge's loss is its own (token ratios) c follows from the edge's own log-probability. Sequence
ratios tie the edges of a row together: the tied part of c needs the log-probabilities of the whole row, and
the penalties' part the edge's own.

Dimension key: T trained edges, C a run of them.
"""

from __future__ import annotations

from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from g2rpo_kernels.policy_loss.objective import penalty_loss, tied_loss, ties_kl
from g2rpo_kernels.policy_loss.records import Edges, Objective, PolicyLoss
from g2rpo_kernels.policy_loss.reference import loss_of
from g2rpo_kernels.policy_loss.stats import Stats


class Coefficients(NamedTuple):
    c_C: Tensor
    e_C: Tensor | None
    """None = zero for all."""


def own_coefficients(
    logp_C: Tensor, entropy_C: Tensor, edges: Edges, objective: Objective
) -> tuple[PolicyLoss, Coefficients]:
    """These edges' part of the loss (detached), and their coefficients, under token ratios."""
    with torch.enable_grad():
        logp_C, entropy_C = logp_C.detach().requires_grad_(), entropy_C.detach().requires_grad_()
        part = loss_of(logp_C, entropy_C, edges, objective)
    c_C, e_C = torch.autograd.grad(part.loss, (logp_C, entropy_C), allow_unused=True)
    return part._replace(loss=part.loss.detach()), Coefficients(c_C, e_C)


def tied_coefficient(logp_T: Tensor, edges: Edges, objective: Objective) -> Tensor:
    """[T] the tied part of c under sequence ratios. A row's entries are right once its `logp_T` are."""
    with torch.enable_grad():
        logp_T = logp_T.detach().requires_grad_()
        loss = tied_loss(logp_T, edges, objective)
    return torch.autograd.grad(loss, logp_T)[0]


def penalty_coefficients(
    logp_C: Tensor, entropy_C: Tensor, edges: Edges, objective: Objective, tied_C: Tensor
) -> Coefficients:
    """Coefficients under sequence ratios, given the tied part of c."""
    with torch.enable_grad():
        logp_C, entropy_C = logp_C.detach().requires_grad_(), entropy_C.detach().requires_grad_()
        # The first term only connects the graph where there is no penalty.
        loss = (logp_C * 0).sum() + penalty_loss(logp_C, entropy_C, edges, objective)
    c_C, e_C = torch.autograd.grad(loss, (logp_C, entropy_C), allow_unused=True)
    return Coefficients(c_C + tied_C, e_C)


def known_beforehand(edges: Edges, objective: Objective) -> bool:
    """Whether the tied part of c is the same whatever the log-probabilities: every ratio is 1, or unused."""
    at_one = edges.old_logp_T is None or objective.surrogate == "reinforce"
    return at_one and objective.importance_cap is None and not ties_kl(objective)


def summed(parts: list[PolicyLoss], logp_T: Tensor, entropy_T: Tensor) -> PolicyLoss:
    """The loss of all edges, from that of each run."""
    loss = torch.stack([part.loss for part in parts]).sum()
    return PolicyLoss(loss, logp_T, entropy_T, reduce(_add_stats, (part.stats for part in parts)))


def _add_stats(one: Stats, other: Stats) -> Stats:
    return {name: (one[name][0] + other[name][0], one[name][1] + other[name][1]) for name in one}
