"""Definition of the token loss: the caller's loss on log-probabilities and entropies of materialised logits.

Dimension key: T edges.
"""

from __future__ import annotations

from g2rpo_kernels.linear_logprob.linear import Linear
from g2rpo_kernels.linear_logprob.reference import linear_logprob_reference
from g2rpo_kernels.token_loss.own_loss import OwnLoss, Ties, TokenLoss, check_finite


def token_loss_reference(given: Linear, own: OwnLoss, ties: Ties, chunk_bytes: int | None) -> TokenLoss:
    """Plain autograd; holds T x V several times over."""
    found = linear_logprob_reference(given, chunk_bytes)
    loss = own.finished(found.logp_T, found.entropy_T)
    logp_T, entropy_T = found.logp_T.detach(), found.entropy_T.detach()
    if found.logp_T.requires_grad:
        coefficients = own.coefficients(logp_T, entropy_T)
        if loss.device.type == "cpu":
            check_finite(coefficients)
    return TokenLoss(loss, logp_T, entropy_T)
