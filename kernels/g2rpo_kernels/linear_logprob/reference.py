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
    hidden_TD, head_VD = (_operand(value, linear) for value in (linear.hidden_SD, linear.head_VD))
    if linear.source_T is not None:
        hidden_TD = hidden_TD.index_select(0, linear.source_T)
    logits_TV = hidden_TD @ head_VD.T
    return logits_TV if linear.bias_V is None else logits_TV + linear.bias_V.to(linear.dtype)


def _operand(value: Tensor, linear: Linear) -> Tensor:
    """Rounded to the products' dtype, in that of accumulation; its gradient is that of the rounded one."""
    wide = value.to(linear.dtype)
    if linear.product_dtype == linear.dtype:
        return wide
    return wide + (value.detach().to(linear.product_dtype).to(linear.dtype) - wide.detach())


def linear_logprob_reference(linear: Linear, chunk_bytes: int | None) -> LogProb:
    """Holds T x V several times over; `chunk_bytes` has nothing to say here."""
    return logprob_reference(logits_reference(linear), linear.target_T, linear.temperature, linear.softcap)
