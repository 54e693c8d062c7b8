"""Coefficients c = dL/dlogp and e = dL/dH of edges, by autograd of the objective on vectors.

Where each edge's loss is its own (token ratios) c follows from the edge's own log-probability. Sequence
ratios tie the edges of a row together: the tied part of c needs the log-probabilities of the whole row, and
the penalties' part the edge's own.

Dimension key: T trained edges, C a run of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from g2rpo_kernels.policy_loss.objective import penalty_loss, tied_loss, ties_kl
from g2rpo_kernels.policy_loss.records import Edges, Objective
from g2rpo_kernels.policy_loss.surrogates import surrogate_of


class Coefficients(NamedTuple):
    c_C: Tensor
    e_C: Tensor | None
    """None = zero for all."""


@contextmanager
def recording() -> Iterator[None]:
    """Autograd inside an operator, whose body torch runs below the dispatch key that records."""
    key = torch._C.DispatchKey.AutogradFunctionality
    with torch._C._SetExcludeDispatchKeyGuard(key, False), torch.enable_grad():
        yield


def own_coefficients(logp_C: Tensor, entropy_C: Tensor, edges: Edges, objective: Objective) -> Coefficients:
    """These edges' coefficients under token ratios."""
    with recording():
        logp_C, entropy_C = logp_C.detach().requires_grad_(), entropy_C.detach().requires_grad_()
        loss = tied_loss(logp_C, edges, objective) + penalty_loss(logp_C, entropy_C, edges, objective)
        return Coefficients(*torch.autograd.grad(loss, (logp_C, entropy_C), allow_unused=True))


def tied_coefficient(logp_T: Tensor, edges: Edges, objective: Objective) -> Tensor:
    """[T] the tied part of c under sequence ratios. A row's entries are right once its `logp_T` are."""
    with recording():
        logp_T = logp_T.detach().requires_grad_()
        return torch.autograd.grad(tied_loss(logp_T, edges, objective), logp_T)[0]


def penalty_coefficients(
    logp_C: Tensor, entropy_C: Tensor, edges: Edges, objective: Objective, tied_C: Tensor
) -> Coefficients:
    """Coefficients under sequence ratios, given the tied part of c."""
    with recording():
        logp_C, entropy_C = logp_C.detach().requires_grad_(), entropy_C.detach().requires_grad_()
        # The first term only connects the graph where there is no penalty.
        loss = (logp_C * 0).sum() + penalty_loss(logp_C, entropy_C, edges, objective)
        c_C, e_C = torch.autograd.grad(loss, (logp_C, entropy_C), allow_unused=True)
    return Coefficients(c_C + tied_C, e_C)


def known_beforehand(edges: Edges, objective: Objective) -> bool:
    """Whether the tied part of c is the same whatever the log-probabilities: every ratio is 1, or unused."""
    at_one = edges.old_logp_T is None or not surrogate_of(objective.surrogate).reads_ratio
    return at_one and objective.importance_cap is None and not ties_kl(objective)
