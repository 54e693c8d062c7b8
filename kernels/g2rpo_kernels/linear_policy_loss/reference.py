"""Definition of the linear policy loss: log-probabilities of materialised logits, then the objective on them.

Dimension key: T trained edges.
"""

from __future__ import annotations

from g2rpo_kernels.linear_logprob.linear import Linear
from g2rpo_kernels.linear_logprob.reference import linear_logprob_reference
from g2rpo_kernels.policy_loss.records import Edges, Objective, PolicyLoss
from g2rpo_kernels.policy_loss.reference import loss_of


def linear_policy_loss_reference(
    linear: Linear, edges: Edges, objective: Objective, chunk_bytes: int | None
) -> PolicyLoss:
    """Plain autograd; holds T x V several times over."""
    logp_T, entropy_T, _ = linear_logprob_reference(linear, chunk_bytes)
    return loss_of(logp_T, entropy_T, edges, objective)
