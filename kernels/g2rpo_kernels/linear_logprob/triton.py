"""`linear_logprob` on a GPU: products by the vendor's library in float32, rows by Triton kernels.

Forward one product per part, backward recomputes it (four products in all; three with a frozen head or
frozen hidden states). Nothing waits for the device.

Dimension key: S positions, D width, V vocabulary, T rows, C rows of a chunk, Z rows of a part.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from g2rpo_kernels.linear_logprob.linear import LINEAR, Linear, tensors_of
from g2rpo_kernels.linear_logprob.operator import operators
from g2rpo_kernels.linear_logprob.triton_pass import DevicePass, empty_numbers
from g2rpo_kernels.logprob.partials import RowNumbers
from g2rpo_kernels.logprob.records import LogProb


def forward_triton(chunk_bytes: int | None, *packed: Any) -> tuple[Tensor, Tensor, Tensor]:
    """(logp, entropy, lse in float64), [T] each."""
    work = DevicePass(LINEAR.unpack(*packed), chunk_bytes, (False, False, False))
    work.statistics(work.everything)
    logp_T, entropy_T, lse_T = work.numbers
    return logp_T, entropy_T, lse_T


def backward_triton(
    numbers: list[Tensor],
    c_T: Tensor | None,
    e_T: Tensor | None,
    g_T: Tensor | None,
    needs: list[bool],
    chunk_bytes: int | None,
    *packed: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of (hidden, head, bias), empty where not needed."""
    given = LINEAR.unpack(*packed)
    work, row = DevicePass(given, chunk_bytes, needs), RowNumbers(*numbers)
    with torch.autocast(given.hidden_SD.device.type, enabled=False):
        for chunk in work.device_rows.chunks(work.everything):
            x_CD = work.linear.rows(chunk)
            for part in work.device_rows.parts(chunk, x_CD):
                upstream = (None if value_T is None else value_T[part.rows] for value_T in (c_T, e_T, g_T))
                part.gradient(row.rows(part.rows), *upstream)
            work.sums.add(chunk, x_CD, work.device_rows.dlogits(chunk))
    operands = (given.hidden_SD, given.head_VD, given.bias_V)
    rounded = [
        None if value is None or like is None else value.to(like.dtype)
        for value, like in zip(work.sums.finish(), operands, strict=True)
    ]
    return tensors_of(rounded, given.hidden_SD)


def _unfilled(linear: Linear) -> tuple[Tensor, ...]:
    return tuple(empty_numbers(linear))


forward_op, backward_op = operators("linear_logprob", forward_triton, backward_triton, _unfilled, 3)


def linear_logprob_triton(linear: Linear, chunk_bytes: int | None) -> LogProb:
    """Never more than `chunk_bytes` of logits and their gradient at once. Once differentiable."""
    logp_T, entropy_T, lse_T = forward_op(chunk_bytes, *LINEAR.pack(linear))
    return LogProb(logp_T, entropy_T, lse_T.float())
