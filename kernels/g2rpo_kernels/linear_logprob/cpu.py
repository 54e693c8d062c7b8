"""`linear_logprob` in row chunks: forward one product per chunk, backward recomputes it (four products in
all).

Dimension key: S positions, D width, V vocabulary, T rows, C rows of a chunk.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from g2rpo_kernels.linear_logprob.chunks import ChunkBuffer, GradientSums, chunked_stats
from g2rpo_kernels.linear_logprob.linear import LINEAR, Linear, tensors_of
from g2rpo_kernels.linear_logprob.operator import operators
from g2rpo_kernels.logprob.records import LogProb
from g2rpo_kernels.logprob.rows import RowGradients, RowStats


def forward_cpu(chunk_bytes: int | None, *packed: Any) -> tuple[Tensor, ...]:
    """(logp, entropy, lse, max, log_sum), [T] each."""
    stats = chunked_stats(LINEAR.unpack(*packed), chunk_bytes)
    return stats.logp_C, stats.entropy_C, stats.max_C + stats.log_sum_C, stats.max_C, stats.log_sum_C


def backward_cpu(
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
    logp_T, entropy_T, _, max_T, log_sum_T = numbers
    row_stats = RowStats(logp_T, entropy_T, max_T, log_sum_T)
    upstream = RowGradients(torch.zeros_like(logp_T) if c_T is None else c_T, e_T, g_T)
    linear = given.rounded(given.dtype)
    buffer, sums = ChunkBuffer(linear, chunk_bytes), GradientSums(linear, *needs)
    with torch.autocast("cpu", enabled=False):
        for chunk in buffer.chunks:
            x_CD, row = linear.rows(chunk), row_stats.rows(chunk)
            z_CV = buffer.logits(chunk, x_CD)
            sums.add(buffer, chunk, x_CD, z_CV, row, upstream.rows(chunk))
    return tensors_of(sums.finish(given), given.hidden_SD)


def _unfilled(linear: Linear) -> tuple[Tensor, ...]:
    return tuple(linear.hidden_SD.new_empty(linear.num_rows, dtype=linear.dtype) for _ in range(5))


forward_op, backward_op = operators("linear_logprob_cpu", forward_cpu, backward_cpu, _unfilled, 5)


def linear_logprob_cpu(linear: Linear, chunk_bytes: int | None) -> LogProb:
    """Never more than `chunk_bytes` of logits at once, forward or backward. Once differentiable."""
    logp_T, entropy_T, lse_T, _, _ = forward_op(chunk_bytes, *LINEAR.pack(linear))
    return LogProb(logp_T, entropy_T, lse_T)
