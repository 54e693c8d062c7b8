"""`logprob` in two cache-sized sweeps over the logits: statistics forward, d logits backward.

Beside the logits and their gradient it never holds more than one block of rows.
Dimension key: T rows, V vocabulary, C rows of a block.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from g2rpo_kernels.logprob.checks import accumulation_dtype
from g2rpo_kernels.logprob.records import LogProb
from g2rpo_kernels.logprob.rows import (
    RowGradients,
    RowStats,
    dlogits_,
    empty_stats,
    row_stats,
    squash_,
    tiles,
)


class _LogProb(Function):
    @staticmethod
    def forward(
        ctx: Any, logits_TV: Tensor, target_T: Tensor, temperature: float, softcap: float | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        stats = empty_stats(len(target_T), accumulation_dtype(logits_TV.dtype))
        for tile in _tiles(logits_TV):
            held_CV = squash_(_copy(logits_TV, tile), softcap)
            values = row_stats(held_CV, target_T[tile], temperature, softcap)
            for out_C, value_C in zip(stats.rows(tile), values, strict=True):
                out_C.copy_(value_C)
        ctx.save_for_backward(logits_TV, target_T, *stats)
        ctx.scaling = (temperature, softcap)
        ctx.set_materialize_grads(False)
        return stats.logp_C.clone(), stats.entropy_C.clone(), stats.max_C + stats.log_sum_C

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, c_T: Tensor | None, e_T: Tensor | None, g_T: Tensor | None
    ) -> Any:
        logits_TV, target_T, *saved = ctx.saved_tensors
        stats = RowStats(*saved)
        upstream = RowGradients(torch.zeros_like(stats.logp_C) if c_T is None else c_T, e_T, g_T)
        dlogits_TV = torch.empty_like(logits_TV)
        for tile in _tiles(logits_TV):
            row = stats.rows(tile)
            held_CV = squash_(_copy(logits_TV, tile), ctx.scaling[1])
            dlogits_TV[tile] = dlogits_(held_CV, target_T[tile], row, upstream.rows(tile), *ctx.scaling)
        return dlogits_TV, None, None, None


def _tiles(logits_TV: Tensor) -> list[slice]:
    return tiles(logits_TV.shape[0], logits_TV.shape[1] * accumulation_dtype(logits_TV.dtype).itemsize)


def _copy(logits_TV: Tensor, tile: slice) -> Tensor:
    return logits_TV[tile].to(accumulation_dtype(logits_TV.dtype), copy=True)


def logprob_cpu(logits_TV: Tensor, target_T: Tensor, temperature: float, softcap: float | None) -> LogProb:
    """As `logprob_reference`, without temporaries of the size of the logits. Once differentiable."""
    return LogProb(*_LogProb.apply(logits_TV, target_T.long(), temperature, softcap))
