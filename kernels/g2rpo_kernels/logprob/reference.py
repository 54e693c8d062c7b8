"""Definition of the log-probability op, in plain PyTorch; float64 is the truth the others are tested against.

    z = softcap * tanh(logits / softcap) / temperature,   logp = z[target] - lse(z),   H = -sum_v p_v log p_v

Dimension key: T rows, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from g2rpo_kernels.logprob.checks import accumulation_dtype
from g2rpo_kernels.logprob.records import LogProb


def logprob_reference(
    logits_TV: Tensor, target_T: Tensor, temperature: float, softcap: float | None
) -> LogProb:
    """Differentiable by autograd, in the accumulation dtype of the logits."""
    z_TV = logits_TV.to(accumulation_dtype(logits_TV.dtype))
    if softcap is not None:
        z_TV = softcap * torch.tanh(z_TV / softcap)
    z_TV = z_TV / temperature
    logp_TV = torch.log_softmax(z_TV, -1)
    logp_T = logp_TV.gather(1, target_T.long()[:, None]).squeeze(1)
    # A logit of -inf has p log p = 0, which 0 * -inf would turn into NaN.
    entropy_T = -(logp_TV.exp() * logp_TV.masked_fill(logp_TV == -torch.inf, 0.0)).sum(-1)
    return LogProb(logp_T, entropy_T, torch.logsumexp(z_TV, -1))
