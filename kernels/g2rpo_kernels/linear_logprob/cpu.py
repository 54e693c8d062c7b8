"""`linear_logprob` in row chunks: forward one product per chunk, backward recomputes it (four products in
all).

Forward and backward are an operator each, opaque to `torch.compile`.

Dimension key: S positions, D width, V vocabulary, T rows, C rows of a chunk.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from g2rpo_kernels.linear_logprob.chunks import ChunkBuffer, GradientSums, chunked_stats
from g2rpo_kernels.linear_logprob.linear import LINEAR_SCHEMA, Linear, gradients_of, tensors_of
from g2rpo_kernels.logprob.records import LogProb
from g2rpo_kernels.logprob.rows import RowGradients, RowStats


def forward_cpu(chunk_bytes: int | None, *packed: Any) -> tuple[Tensor, ...]:
    """(logp, entropy, lse, max, log_sum), [T] each."""
    stats = chunked_stats(Linear.unpacked(*packed), chunk_bytes)
    return stats.logp_C, stats.entropy_C, stats.max_C + stats.log_sum_C, stats.max_C, stats.log_sum_C


def backward_cpu(
    stats: list[Tensor],
    c_T: Tensor | None,
    e_T: Tensor | None,
    g_T: Tensor | None,
    needs: list[bool],
    chunk_bytes: int | None,
    *packed: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of (hidden, head, bias), empty where not needed."""
    given, row_stats = Linear.unpacked(*packed), RowStats(*stats)
    upstream = RowGradients(torch.zeros_like(row_stats.logp_C) if c_T is None else c_T, e_T, g_T)
    linear = given.cast(given.dtype, given.dtype)
    buffer, sums = ChunkBuffer(linear, chunk_bytes), GradientSums(linear, *needs)
    with torch.autocast("cpu", enabled=False):
        for chunk in buffer.chunks:
            x_CD, row = linear.rows(chunk), row_stats.rows(chunk)
            z_CV = buffer.logits(chunk, x_CD)
            sums.add(buffer, chunk, x_CD, z_CV, row, upstream.rows(chunk))
    return tensors_of(sums.finish(given), given.hidden_SD)


forward_op = torch.library.custom_op(
    "g2rpo::linear_logprob_cpu",
    forward_cpu,
    mutates_args=(),
    schema=f"(SymInt? chunk_bytes, {LINEAR_SCHEMA}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
backward_op = torch.library.custom_op(
    "g2rpo::linear_logprob_cpu_backward",
    backward_cpu,
    mutates_args=(),
    schema="(Tensor[] stats, Tensor? c_T, Tensor? e_T, Tensor? g_T, bool[] needs, SymInt? chunk_bytes, "
    f"{LINEAR_SCHEMA}) -> (Tensor, Tensor, Tensor)",
)


@forward_op.register_fake
def _(chunk_bytes: int | None, *packed: Any) -> tuple[Tensor, ...]:
    linear = Linear.unpacked(*packed)
    return tuple(linear.hidden_SD.new_empty(linear.num_rows, dtype=linear.dtype) for _ in range(5))


@backward_op.register_fake
def _(stats: Any, c_T: Any, e_T: Any, g_T: Any, needs: list[bool], *rest: Any) -> tuple[Tensor, ...]:
    return Linear.unpacked(*rest[1:]).like(needs)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.chunk_bytes, *tensors = inputs[:6]
    ctx.scaling = inputs[6:]
    logp_T, entropy_T, _, max_T, log_sum_T = output
    ctx.mark_non_differentiable(max_T, log_sum_T)
    ctx.save_for_backward(*tensors, logp_T, entropy_T, max_T, log_sum_T)
    ctx.set_materialize_grads(False)


@once_differentiable
def _backward(ctx: Any, c_T: Tensor | None, e_T: Tensor | None, g_T: Tensor | None, *_: Any) -> Any:
    tensors, stats = ctx.saved_tensors[:5], ctx.saved_tensors[5:]
    _, needs_hidden, needs_head, _, _, needs_bias = ctx.needs_input_grad[:6]
    needs = [needs_hidden, needs_head, needs_bias]
    found = backward_op(list(stats), c_T, e_T, g_T, needs, ctx.chunk_bytes, *tensors, *ctx.scaling)
    hidden_SD, head_VD, bias_V = gradients_of(found, needs)
    return None, hidden_SD, head_VD, None, None, bias_V, *(None,) * 5


forward_op.register_autograd(_backward, setup_context=_save)


def linear_logprob_cpu(linear: Linear, chunk_bytes: int | None) -> LogProb:
    """Never more than `chunk_bytes` of logits at once, forward or backward. Once differentiable."""
    logp_T, entropy_T, lse_T, _, _ = forward_op(chunk_bytes, *linear.packed())
    return LogProb(logp_T, entropy_T, lse_T)
