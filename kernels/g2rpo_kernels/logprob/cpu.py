"""`logprob` in two cache-sized sweeps over the logits: statistics forward, d logits backward.

Beside the logits and their gradient it never holds more than one block of rows. Each sweep is an operator,
opaque to `torch.compile`.

Dimension key: T rows, V vocabulary, C rows of a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from g2rpo_kernels.logprob.checks import accumulation_dtype
from g2rpo_kernels.logprob.records import LogProb
from g2rpo_kernels.logprob.rows import RowGradients, RowStats, empty_stats, finish_stats, squash_, tiles
from g2rpo_kernels.logprob.sweeps import chunk_dlogits, chunk_partials


@torch.library.custom_op("g2rpo::logprob_cpu", mutates_args=())
def forward_op(
    logits_TV: Tensor, target_T: Tensor, temperature: float, softcap: float | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(logp, entropy, lse, max, log_sum), [T] each."""
    stats = empty_stats(len(target_T), accumulation_dtype(logits_TV.dtype))
    for tile, held_CV in _held_blocks(logits_TV, softcap):
        values = finish_stats(chunk_partials(held_CV, target_T[tile], temperature, softcap))
        for out_C, value_C in zip(stats.rows(tile), values, strict=True):
            out_C.copy_(value_C)
    return stats.logp_C, stats.entropy_C, stats.max_C + stats.log_sum_C, stats.max_C, stats.log_sum_C


@forward_op.register_fake
def _(logits_TV: Tensor, target_T: Tensor, *_: Any) -> tuple[Tensor, ...]:
    dtype = accumulation_dtype(logits_TV.dtype)
    return tuple(logits_TV.new_empty(target_T.shape[0], dtype=dtype) for _ in range(5))


@torch.library.custom_op("g2rpo::logprob_cpu_backward", mutates_args=())
def backward_op(
    logits_TV: Tensor,
    target_T: Tensor,
    stats: list[Tensor],
    c_T: Tensor | None,
    e_T: Tensor | None,
    g_T: Tensor | None,
    temperature: float,
    softcap: float | None,
) -> Tensor:
    """d logits, in their dtype."""
    rows = RowStats(*stats)
    upstream = RowGradients(torch.zeros_like(rows.logp_C) if c_T is None else c_T, e_T, g_T)
    dlogits_TV = torch.empty_like(logits_TV)
    for tile, held_CV in _held_blocks(logits_TV, softcap):
        given = (target_T[tile], rows.rows(tile), upstream.rows(tile), temperature, softcap)
        if held_CV.dtype == dlogits_TV.dtype:
            chunk_dlogits(held_CV, *given, out_CV=dlogits_TV[tile])
        else:
            chunk_dlogits(held_CV, *given, out_CV=held_CV)
            dlogits_TV[tile] = held_CV
    return dlogits_TV


@backward_op.register_fake
def _(logits_TV: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(logits_TV)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits_TV, target_T, *ctx.scaling = inputs
    logp_T, entropy_T, _, max_T, log_sum_T = output
    ctx.mark_non_differentiable(max_T, log_sum_T)
    ctx.save_for_backward(logits_TV, target_T, logp_T, entropy_T, max_T, log_sum_T)
    ctx.set_materialize_grads(False)


@once_differentiable
def _backward(ctx: Any, c_T: Tensor | None, e_T: Tensor | None, g_T: Tensor | None, *_: Any) -> Any:
    logits_TV, target_T, *stats = ctx.saved_tensors
    return backward_op(logits_TV, target_T, stats, c_T, e_T, g_T, *ctx.scaling), None, None, None


forward_op.register_autograd(_backward, setup_context=_save)


def _held_blocks(logits_TV: Tensor, softcap: float | None) -> Iterator[tuple[slice, Tensor]]:
    """Held logits in the dtype of accumulation: all rows as they are where they are that, else copies."""
    dtype = accumulation_dtype(logits_TV.dtype)
    if softcap is None and logits_TV.dtype == dtype:
        yield slice(0, logits_TV.shape[0]), logits_TV
        return
    for tile in tiles(logits_TV.shape[0], logits_TV.shape[1] * dtype.itemsize):
        yield tile, squash_(logits_TV[tile].to(dtype, copy=True), softcap)


def logprob_cpu(logits_TV: Tensor, target_T: Tensor, temperature: float, softcap: float | None) -> LogProb:
    """As `logprob_reference`, without temporaries of the size of the logits. Once differentiable."""
    logp_T, entropy_T, lse_T, _, _ = forward_op(logits_TV, target_T.long(), temperature, softcap)
    return LogProb(logp_T, entropy_T, lse_T)
