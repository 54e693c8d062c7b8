"""What `logprob` and `linear_logprob` return. Dimension key: T rows (trained edges)."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class LogProb(NamedTuple):
    """Per-row statistics of the softmax over the vocabulary, in nats and in the accumulation dtype."""

    logp_T: Tensor
    """log p(target)."""
    entropy_T: Tensor
    """-sum_v p_v log p_v."""
    lse_T: Tensor
    """log sum_v exp(z_v) of the effective logits (bias, softcap and temperature applied)."""
