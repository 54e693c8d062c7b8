"""`linear_logprob` on a GPU: products by the vendor's library in float32, rows by Triton kernels.

Forward one product per part, backward recomputes it (four products in all; three with a frozen head or
frozen hidden states). Nothing waits for the device.

Dimension key: S positions, D width, V vocabulary, T rows, C rows of a chunk, Z rows of a part.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from g2rpo_kernels.linear_logprob.device_chunks import DeviceRows, DeviceSums
from g2rpo_kernels.linear_logprob.linear import LINEAR, Linear, tensors_of
from g2rpo_kernels.linear_logprob.operator import operators
from g2rpo_kernels.linear_logprob.shard import reduce_partials
from g2rpo_kernels.logprob.partials import RowNumbers, finished
from g2rpo_kernels.logprob.records import LogProb
from g2rpo_kernels.logprob.triton import row_gradient_, row_stats


def on_device(given: Linear) -> Linear:
    """The problem with operands of one dtype, as the row kernels and products take it."""
    if given.product_dtype == torch.float64:
        raise ValueError("impl='triton': wanted hidden and head narrower than float64; use impl='reference'")
    return given.rounded(given.product_dtype)


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
    dtypes = (torch.float32, torch.float32, torch.float64)
    return RowNumbers(*(linear.head_VD.new_zeros(linear.num_rows, dtype=dtype) for dtype in dtypes))


def write_numbers(linear: Linear, device_rows: DeviceRows, rows: slice, out: RowNumbers) -> None:
    """Statistics of a run of rows; no gradient."""
    for chunk in device_rows.chunks(rows):
        for part, z_ZV, _ in device_rows.parts(chunk, linear.rows(chunk)):
            copy_numbers(out, part, numbers_of(linear, part, z_ZV))


def copy_numbers(out: RowNumbers, rows: slice, values: RowNumbers) -> None:
    for out_T, value_Z in zip(out, values, strict=True):
        out_T[rows].copy_(value_Z)


def forward_triton(chunk_bytes: int | None, *packed: Any) -> tuple[Tensor, Tensor, Tensor]:
    """(logp, entropy, lse in float64), [T] each."""
    linear = on_device(LINEAR.unpack(*packed))
    numbers = empty_numbers(linear)
    device_rows = DeviceRows(linear, chunk_bytes, gradient=False)
    write_numbers(linear, device_rows, slice(0, linear.num_rows), numbers)
    return numbers.logp_T, numbers.entropy_T, numbers.lse_T


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
    _, entropy_T, lse_T = numbers
    given = LINEAR.unpack(*packed)
    linear = on_device(given)
    device_rows, sums = DeviceRows(linear, chunk_bytes, gradient=True), DeviceSums(linear, needs)
    with torch.autocast(given.hidden_SD.device.type, enabled=False):
        for chunk in device_rows.chunks(slice(0, linear.num_rows)):
            x_CD = linear.rows(chunk)
            for part, z_ZV, dz_ZV in device_rows.parts(chunk, x_CD):
                c_Z, e_Z, g_Z = (None if value_T is None else value_T[part] for value_T in (c_T, e_T, g_T))
                known = (linear.target_T[part], lse_T[part], entropy_T[part], c_Z, e_Z)
                row_gradient_(z_ZV, *known, g_T=g_Z, out=dz_ZV, **scaling(linear))
            sums.add(chunk, x_CD, device_rows.dlogits(chunk))
    operands = (given.hidden_SD, given.head_VD, given.bias_V)
    rounded = [
        None if value is None or like is None else value.to(like.dtype)
        for value, like in zip(sums.finish(), operands, strict=True)
    ]
    return tensors_of(rounded, given.hidden_SD)


def _unfilled(linear: Linear) -> tuple[Tensor, ...]:
    return tuple(empty_numbers(linear))


forward_op, backward_op = operators("linear_logprob", forward_triton, backward_triton, _unfilled, 3)


def linear_logprob_triton(linear: Linear, chunk_bytes: int | None) -> LogProb:
    """Never more than `chunk_bytes` of logits and their gradient at once. Once differentiable."""
    logp_T, entropy_T, lse_T = forward_op(chunk_bytes, *LINEAR.pack(linear))
    return LogProb(logp_T, entropy_T, lse_T.float())
