"""`linear_logprob` on a GPU: products by the vendor's library in float32, rows by Triton kernels.

Forward one product per part, backward recomputes it (four products in all; three with a frozen head or
frozen hidden states). Nothing waits for the device.

Dimension key: S positions, D width, V vocabulary, T rows, C rows of a chunk, Z rows of a part.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from g2rpo_kernels.linear_logprob.device_chunks import DeviceRows, DeviceSums
from g2rpo_kernels.linear_logprob.linear import Linear
from g2rpo_kernels.linear_logprob.shard import reduce_partials
from g2rpo_kernels.logprob.partials import RowNumbers, finished
from g2rpo_kernels.logprob.records import LogProb
from g2rpo_kernels.logprob.triton import row_gradient_, row_stats


def on_device(given: Linear) -> Linear:
    """The problem with operands of one dtype, as the row kernels and products take it."""
    if given.product_dtype == torch.float64:
        raise ValueError("impl='triton': wanted hidden and head narrower than float64; use impl='reference'")
    return given.cast(given.product_dtype, torch.float32)


def scaling(linear: Linear) -> dict[str, Any]:
    """Keyword arguments of the row kernels."""
    return {"temperature": linear.temperature, "softcap": linear.softcap, "bias_V": linear.bias_V}


def numbers_of(linear: Linear, rows: slice, z_ZV: Tensor) -> RowNumbers:
    """logp, entropy and lse of a part, over all ranks of a sharded vocabulary."""
    partials = row_stats(z_ZV, linear.target_T[rows], **scaling(linear))
    if linear.shard is not None:
        partials = reduce_partials(partials, linear.shard.group)
    return finished(partials)


def empty_numbers(linear: Linear) -> RowNumbers:
    """[T] zeros for each."""
    device = linear.head_VD.device
    logp_T, entropy_T = torch.zeros((2, linear.num_rows), dtype=torch.float32, device=device)
    return RowNumbers(logp_T, entropy_T, torch.zeros(linear.num_rows, dtype=torch.float64, device=device))


def write_numbers(linear: Linear, device_rows: DeviceRows, rows: slice, out: RowNumbers) -> None:
    """Statistics of a run of rows; no gradient."""
    for chunk in device_rows.chunks(rows):
        for part, z_ZV, _ in device_rows.parts(chunk, linear.rows(chunk)):
            copy_numbers(out, part, numbers_of(linear, part, z_ZV))


def copy_numbers(out: RowNumbers, rows: slice, values: RowNumbers) -> None:
    for out_T, value_Z in zip(out, values, strict=True):
        out_T[rows].copy_(value_Z)


class _LinearLogProb(Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_SD: Tensor,
        head_VD: Tensor,
        bias_V: Tensor | None,
        given: Linear,
        chunk_bytes: int | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        linear = on_device(given)
        numbers = empty_numbers(linear)
        rows = slice(0, linear.num_rows)
        write_numbers(linear, DeviceRows(linear, chunk_bytes, gradient=False), rows, numbers)
        ctx.save_for_backward(hidden_SD, head_VD, bias_V, given.source_T, given.target_T, *numbers)
        ctx.settings = {"temperature": given.temperature, "softcap": given.softcap, "shard": given.shard}
        ctx.chunk_bytes = chunk_bytes
        ctx.set_materialize_grads(False)
        return numbers.logp_T.clone(), numbers.entropy_T.clone(), numbers.lse_T.float()

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, c_T: Tensor | None, e_T: Tensor | None, g_T: Tensor | None
    ) -> Any:
        hidden_SD, head_VD, bias_V, source_T, target_T, _, entropy_T, lse_T = ctx.saved_tensors
        given = Linear(
            hidden_SD=hidden_SD,
            head_VD=head_VD,
            target_T=target_T,
            source_T=source_T,
            bias_V=bias_V,
            **ctx.settings,
        )
        linear = on_device(given)
        device_rows = DeviceRows(linear, ctx.chunk_bytes, gradient=True)
        sums = DeviceSums(linear, list(ctx.needs_input_grad[:3]))
        upstream = (c_T, e_T, g_T)
        for chunk in device_rows.chunks(slice(0, linear.num_rows)):
            x_CD = linear.rows(chunk)
            for part, z_ZV, dz_ZV in device_rows.parts(chunk, x_CD):
                c_Z, e_Z, g_Z = (None if value_T is None else value_T[part] for value_T in upstream)
                known = (linear.target_T[part], lse_T[part], entropy_T[part], c_Z, e_Z)
                row_gradient_(z_ZV, *known, g_T=g_Z, out=dz_ZV, **scaling(linear))
            sums.add(chunk, x_CD, device_rows.dlogits(chunk))
        pairs = zip(sums.finish(), (hidden_SD, head_VD, bias_V), strict=True)
        return *(None if value is None else value.to(like.dtype) for value, like in pairs), None, None


def linear_logprob_triton(linear: Linear, chunk_bytes: int | None) -> LogProb:
    """Never more than `chunk_bytes` of logits and their gradient at once. Once differentiable."""
    arguments = (linear.hidden_SD, linear.head_VD, linear.bias_V, linear, chunk_bytes)
    return LogProb(*_LinearLogProb.apply(*arguments))
