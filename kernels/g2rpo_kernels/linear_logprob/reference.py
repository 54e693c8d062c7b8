"""Definition of the linear log-probability op: the logits materialised, then `logprob`'s definition.

Dimension key: S positions, D width, V vocabulary, T rows.
"""

from __future__ import annotations

from torch import Tensor

from g2rpo_kernels.linear_logprob.linear import Linear
from g2rpo_kernels.logprob.records import LogProb
from g2rpo_kernels.logprob.reference import logprob_reference


def logits_reference(linear: Linear) -> Tensor:
    """[T, V] raw logits, in the accumulation dtype."""
    dtype = linear.dtype
    hidden_TD = linear.hidden_SD.to(dtype)
    if linear.source_T is not None:
        hidden_TD = hidden_TD.index_select(0, linear.source_T)
    logits_TV = hidden_TD @ linear.head_VD.to(dtype).T
    return logits_TV if linear.bias_V is None else logits_TV + linear.bias_V.to(dtype)


def linear_logprob_reference(linear: Linear, chunk_bytes: int | None) -> LogProb:
    """Holds T x V several times over; `chunk_bytes` has nothing to say here."""
    return logprob_reference(logits_reference(linear), linear.target_T, linear.temperature, linear.softcap)
