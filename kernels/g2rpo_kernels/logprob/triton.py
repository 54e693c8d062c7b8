"""`logprob` on Triton: one program per row; forward reads the logits once, backward reads and writes once.

The launchers are custom ops with fake kernels, so they pass through `torch.compile` and checkpointing.
Dimension key: T rows, V vocabulary.
"""

# pyright: reportGeneralTypeIssues=false, reportInvalidTypeForm=false

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from g2rpo_kernels.logprob.partials import RowNumbers, RowPartials
from g2rpo_kernels.logprob.records import LogProb
from g2rpo_kernels.logprob.triton_launch import check_logits, on_device, scaling, tile_for
from g2rpo_kernels.logprob.triton_rows import (
    both,
    finish_row,
    row_sums,
    target_logit,
    upstream,
    write_dlogits,
)


@triton.jit
def stats_kernel(
    logits_ptr,
    target_ptr,
    bias_ptr,
    first_ptr,
    second_ptr,
    third_ptr,
    fourth_ptr,
    lse_ptr,
    num_v,
    stride_t,
    stride_v,
    scale: tl.float64,
    inv_softcap: tl.float64,
    SOFTCAP: tl.constexpr,
    BLOCK_V: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Writes (max z, rest, moment, target logit), or with `lse_ptr` (logp, entropy) and lse in float64."""
    t = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + t * stride_t
    target = tl.load(target_ptr + t).to(tl.int32)
    scale, _ = both(scale)
    inv_softcap, inv_softcap_f32 = both(inv_softcap)
    target_z, _ = target_logit(row_ptr, bias_ptr, target, stride_v, scale, inv_softcap, SOFTCAP)
    m, rest, moment = row_sums(
        row_ptr, bias_ptr, target, num_v, stride_v, scale, inv_softcap_f32, SOFTCAP, BLOCK_V, STAGES
    )
    if lse_ptr is None:
        tl.store(first_ptr + t, m * scale)
        tl.store(second_ptr + t, rest)
        tl.store(third_ptr + t, moment)
        tl.store(fourth_ptr + t, target_z)
    else:
        logp, entropy, lse = finish_row(m, rest, moment, target_z, scale)
        tl.store(first_ptr + t, logp.to(tl.float32))
        tl.store(second_ptr + t, entropy.to(tl.float32))
        tl.store(lse_ptr + t, lse)


@triton.jit
def gradient_kernel(
    logits_ptr,
    out_ptr,
    target_ptr,
    bias_ptr,
    lse_ptr,
    entropy_ptr,
    c_ptr,
    e_ptr,
    g_ptr,
    num_v,
    stride_t,
    stride_v,
    out_stride_t,
    out_stride_v,
    scale: tl.float64,
    inv_softcap: tl.float64,
    inv_temperature: tl.float64,
    SOFTCAP: tl.constexpr,
    BLOCK_V: tl.constexpr,
    STAGES: tl.constexpr,
):
    t = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + t * stride_t
    target = tl.load(target_ptr + t).to(tl.int32)
    lse = tl.load(lse_ptr + t).to(tl.float64)
    entropy = tl.load(entropy_ptr + t).to(tl.float64)
    c, e, g = upstream(c_ptr, e_ptr, g_ptr, t)
    scale, _ = both(scale)
    inv_softcap, inv_softcap_f32 = both(inv_softcap)
    target_z, target_slope = target_logit(row_ptr, bias_ptr, target, stride_v, scale, inv_softcap, SOFTCAP)
    write_dlogits(
        row_ptr,
        out_ptr + t * out_stride_t,
        bias_ptr,
        target,
        target_slope,
        target_z - lse,
        lse,
        entropy,
        c,
        e,
        g,
        num_v,
        stride_v,
        out_stride_v,
        scale,
        inv_softcap_f32,
        inv_temperature,
        SOFTCAP,
        e_ptr is not None,
        BLOCK_V,
        STAGES,
    )


@torch.library.custom_op("g2rpo::row_stats", mutates_args=())
def _row_stats(
    logits_TV: Tensor, target_T: Tensor, temperature: float, softcap: float | None, bias_V: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    partials = _empty_partials(logits_TV)
    _launch_stats(logits_TV, target_T, bias_V, partials, None, temperature, softcap)
    return partials


@_row_stats.register_fake
def _(
    logits_TV: Tensor, target_T: Tensor, temperature: float, softcap: float | None, bias_V: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _empty_partials(logits_TV)


def _empty_partials(logits_TV: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    a, b, c, d = (logits_TV.new_empty(logits_TV.shape[0], dtype=torch.float64) for _ in range(4))
    return a, b, c, d


def _launch_stats(
    logits_TV: Tensor,
    target_T: Tensor,
    bias_V: Tensor | None,
    out: tuple[Tensor | None, ...],
    lse_T: Tensor | None,
    temperature: float,
    softcap: float | None,
) -> None:
    num_rows, vocab = logits_TV.shape
    if not num_rows:
        return
    with on_device(logits_TV):
        stats_kernel[(num_rows,)](
            logits_TV,
            target_T,
            bias_V,
            out[0],
            out[1],
            out[2],
            out[3],
            lse_T,
            num_v=vocab,
            stride_t=logits_TV.stride(0),
            stride_v=logits_TV.stride(1),
            **scaling(temperature, softcap),
            **tile_for(logits_TV).options,
        )


def row_stats(
    logits_TV: Tensor,
    target_T: Tensor,
    *,
    temperature: float,
    softcap: float | None,
    bias_V: Tensor | None = None,
) -> RowPartials:
    """Partial sums of each row, for shards of a vocabulary to combine. One read of the logits; no gradient.

    Args:
        logits_TV: [T, V] float32, bfloat16 or float16, any strides.
        target_T: [T] int64 or int32, a column of this shard, or -1 where it is in another.
        temperature, softcap: as in `logprob`.
        bias_V: [V] floating, added to the logits first.

    Returns:
        `RowPartials(max_T, sumexp_T, sum_z_exp_T, target_logit_T)`, float64. The target's own term is in
        neither sum.
    """
    check_logits(logits_TV)
    return RowPartials(*_row_stats(logits_TV, target_T, temperature, softcap, bias_V))


@torch.library.custom_op("g2rpo::row_gradient", mutates_args=("out_TV",))
def _row_gradient(
    out_TV: Tensor,
    logits_TV: Tensor,
    target_T: Tensor,
    lse_T: Tensor,
    entropy_T: Tensor,
    c_T: Tensor | None,
    e_T: Tensor | None,
    g_T: Tensor | None,
    temperature: float,
    softcap: float | None,
    bias_V: Tensor | None,
) -> None:
    num_rows, vocab = logits_TV.shape
    if not num_rows:
        return
    vectors = [None if value_T is None else value_T.contiguous() for value_T in (c_T, e_T, g_T)]
    with on_device(logits_TV):
        gradient_kernel[(num_rows,)](
            logits_TV,
            out_TV,
            target_T,
            bias_V,
            lse_T,
            entropy_T,
            vectors[0],
            vectors[1],
            vectors[2],
            num_v=vocab,
            stride_t=logits_TV.stride(0),
            stride_v=logits_TV.stride(1),
            out_stride_t=out_TV.stride(0),
            out_stride_v=out_TV.stride(1),
            inv_temperature=1 / temperature,
            **scaling(temperature, softcap),
            **tile_for(logits_TV).options,
        )


@_row_gradient.register_fake
def _(*_: Any) -> None:
    return None


def row_gradient_(
    logits_TV: Tensor,
    target_T: Tensor,
    lse_T: Tensor,
    entropy_T: Tensor,
    c_T: Tensor | None,
    e_T: Tensor | None,
    *,
    temperature: float,
    softcap: float | None,
    bias_V: Tensor | None = None,
    g_T: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """d loss / d logits from c = dL/dlogp, e = dL/dentropy and g = dL/dlse; one read and one write.

    dz_v = c (1[v = target] - p_v) - e p_v (log p_v + H) + g p_v. Rows whose c, e and g are zero are written
    as zeros, unread. The logits may be a shard of a vocabulary, with the whole row's lse and entropy.

    Args:
        logits_TV, target_T, temperature, softcap, bias_V: as in `row_stats`.
        lse_T: [T] float64 (float32 does, at the price of digits where the logits are shifted).
        entropy_T, c_T, e_T, g_T: [T] float32 or float64; None = zero.
        out: [T, V], any strides, float32, bfloat16 or float16; None = over the logits.

    Returns:
        `out`, d loss / d raw logits.
    """
    check_logits(logits_TV)
    out_TV = logits_TV if out is None else out
    upstream = (c_T, e_T, g_T)
    _row_gradient(out_TV, logits_TV, target_T, lse_T, entropy_T, *upstream, temperature, softcap, bias_V)
    return out_TV


@torch.library.custom_op("g2rpo::logprob", mutates_args=())
def _logprob(
    logits_TV: Tensor, target_T: Tensor, temperature: float, softcap: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    logp_T, entropy_T, lse_T = _empty_numbers(logits_TV)
    _launch_stats(logits_TV, target_T, None, (logp_T, entropy_T, None, None), lse_T, temperature, softcap)
    return logp_T, entropy_T, lse_T


@_logprob.register_fake
def _(
    logits_TV: Tensor, target_T: Tensor, temperature: float, softcap: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_numbers(logits_TV)


def _empty_numbers(logits_TV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    num_rows = logits_TV.shape[0]
    return (
        logits_TV.new_empty(num_rows, dtype=torch.float32),
        logits_TV.new_empty(num_rows, dtype=torch.float32),
        logits_TV.new_empty(num_rows, dtype=torch.float64),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    logits_TV, target_T, *ctx.scaling = inputs
    ctx.save_for_backward(logits_TV, target_T, *output[1:])
    ctx.set_materialize_grads(False)


@once_differentiable
def _backward(ctx: Any, c_T: Tensor | None, e_T: Tensor | None, g_T: Tensor | None) -> Any:
    logits_TV, target_T, entropy_T, lse_T = ctx.saved_tensors
    dlogits_TV = torch.empty_like(logits_TV)
    saved = (dlogits_TV, logits_TV, target_T, lse_T, entropy_T)
    _row_gradient(*saved, c_T, e_T, g_T, *ctx.scaling, None)
    return dlogits_TV, None, None, None


_logprob.register_autograd(_backward, setup_context=_save)


def row_numbers(
    logits_TV: Tensor, target_T: Tensor, *, temperature: float, softcap: float | None
) -> RowNumbers:
    """logp, entropy and lse of each row in one launch, as `finished(row_stats(...))`; no gradient."""
    check_logits(logits_TV)
    return RowNumbers(*_logprob(logits_TV.detach(), target_T, temperature, softcap))


def logprob_triton(logits_TV: Tensor, target_T: Tensor, temperature: float, softcap: float | None) -> LogProb:
    """As `logprob_reference`; keeps the logits and 12 bytes a row for backward. Once differentiable."""
    check_logits(logits_TV)
    logp_T, entropy_T, lse_T = _logprob(logits_TV, target_T, temperature, softcap)
    return LogProb(logp_T, entropy_T, lse_T.float())
