"""`linear_logprob` in row chunks: forward one product per chunk, backward recomputes it (four products in
all).

Dimension key: S positions, D width, V vocabulary, T rows, C rows of a chunk.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from g2rpo_kernels.linear_logprob.chunks import ChunkBuffer, GradientSums, chunked_stats
from g2rpo_kernels.linear_logprob.linear import Linear
from g2rpo_kernels.logprob.records import LogProb
from g2rpo_kernels.logprob.rows import RowGradients, RowStats


class _LinearLogProb(Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_SD: Tensor,
        head_VD: Tensor,
        bias_V: Tensor | None,
        linear: Linear,
        chunk_bytes: int | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        stats = chunked_stats(linear, chunk_bytes)
        ctx.save_for_backward(hidden_SD, head_VD, bias_V, linear.source_T, linear.target_T, *stats)
        ctx.settings = {
            "temperature": linear.temperature,
            "softcap": linear.softcap,
            "shard": linear.shard,
        }
        ctx.chunk_bytes = chunk_bytes
        ctx.set_materialize_grads(False)
        return stats.logp_C.clone(), stats.entropy_C.clone(), stats.max_C + stats.log_sum_C

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, c_T: Tensor | None, e_T: Tensor | None, g_T: Tensor | None
    ) -> Any:
        hidden_SD, head_VD, bias_V, source_T, target_T, *saved = ctx.saved_tensors
        stats = RowStats(*saved)
        given = Linear(
            hidden_SD=hidden_SD,
            head_VD=head_VD,
            target_T=target_T,
            source_T=source_T,
            bias_V=bias_V,
            **ctx.settings,
        )
        upstream = RowGradients(torch.zeros_like(stats.logp_C) if c_T is None else c_T, e_T, g_T)
        linear = given.cast(given.dtype, given.dtype)
        buffer, sums = ChunkBuffer(linear, ctx.chunk_bytes), GradientSums(linear, *ctx.needs_input_grad[:3])
        for chunk in buffer.chunks:
            x_CD, row = linear.rows(chunk), stats.rows(chunk)
            z_CV = buffer.logits(chunk, x_CD)
            sums.add(buffer, chunk, x_CD, z_CV, row, upstream.rows(chunk))
        return *sums.finish(given), None, None


def linear_logprob_cpu(linear: Linear, chunk_bytes: int | None) -> LogProb:
    """Never more than `chunk_bytes` of logits at once, forward or backward. Once differentiable."""
    arguments = (linear.hidden_SD, linear.head_VD, linear.bias_V, linear, chunk_bytes)
    return LogProb(*_LinearLogProb.apply(*arguments))
