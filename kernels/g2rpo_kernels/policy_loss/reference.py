"""Definition of the policy loss on log-probabilities that are already there, with its metrics.

Dimension key: T trained edges.
"""

from __future__ import annotations

from torch import Tensor

from g2rpo_kernels.policy_loss.objective import (
    evaluate_surrogate,
    penalty_loss,
    surrogate_loss,
    tied_kl_loss,
    ties_kl,
)
from g2rpo_kernels.policy_loss.records import Edges, Objective, PolicyLoss
from g2rpo_kernels.policy_loss.stats import policy_stats


def loss_of(logp_T: Tensor, entropy_T: Tensor, edges: Edges, objective: Objective) -> PolicyLoss:
    """Differentiable with respect to both vectors, in their dtype and on their device."""
    edges = edges.cast(logp_T.dtype, logp_T.device)
    terms, values = evaluate_surrogate(logp_T, edges, objective)
    loss = surrogate_loss(terms, values) + penalty_loss(logp_T, entropy_T, edges, objective)
    if ties_kl(objective):
        loss = loss + tied_kl_loss(terms, logp_T, edges, objective)
    logp_T, entropy_T = logp_T.detach(), entropy_T.detach()
    stats = policy_stats(logp_T, entropy_T, terms, values, edges, objective)
    return PolicyLoss(loss, logp_T, entropy_T, stats)
