"""A pass over a linear problem's rows on a GPU: what all linear ops do with a part of them.

Dimension key: T rows, C rows of a chunk, Z rows of a part, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from g2rpo_kernels.linear_logprob.device_chunks import DeviceRows, DeviceSums, chunk_bound
from g2rpo_kernels.linear_logprob.linear import Linear
from g2rpo_kernels.linear_logprob.shard import reduce_partials
from g2rpo_kernels.linear_logprob.triton_exponentials import ExponentialRows
from g2rpo_kernels.logprob.partials import RowNumbers, finished
from g2rpo_kernels.logprob.triton import row_gradient_, row_stats


def empty_numbers(linear: Linear) -> RowNumbers:
    """[T] zeros for each."""
    dtypes = (torch.float32, torch.float32, torch.float64)
    return RowNumbers(*(linear.head_VD.new_zeros(linear.num_rows, dtype=dtype) for dtype in dtypes))


class DevicePass:
    """A problem with operands of one dtype, its buffers, and the statistics and gradients that it fills."""

    def __init__(self, given: Linear, chunk_bytes: int | None, needs: Sequence[bool]) -> None:
        if given.product_dtype == torch.float64:
            raise ValueError(
                "impl='triton': wanted hidden and head narrower than float64; use impl='reference'"
            )
        self.linear = given.rounded(given.product_dtype)
        self._chunk_bytes, self._gradient = chunk_bytes, any(needs)
        self.sums = DeviceSums(self.linear, needs)
        self.numbers = empty_numbers(self.linear)

    @cached_property
    def device_rows(self) -> DeviceRows:
        """Room for logits."""
        return DeviceRows(self.linear, self._chunk_bytes, self._gradient)

    @cached_property
    def exponentials(self) -> ExponentialRows:
        """Room for what stands for them where `takes_exponentials`."""
        return ExponentialRows(self.linear, chunk_bound(self._chunk_bytes))

    @property
    def everything(self) -> slice:
        return slice(0, self.linear.num_rows)

    @property
    def scaling(self) -> dict[str, Any]:
        """Keyword arguments of the row kernels."""
        linear = self.linear
        return {"temperature": linear.temperature, "softcap": linear.softcap, "bias_V": linear.bias_V}

    def statistics(self, rows: slice) -> None:
        """Fills the numbers of a run of rows; no gradient."""
        for chunk in self.device_rows.chunks(rows):
            for part, z_ZV, _ in self.device_rows.parts(chunk, self.linear.rows(chunk)):
                self.found(part, z_ZV)

    def found(self, part: slice, z_ZV: Tensor) -> RowNumbers:
        """The numbers of a part, over all ranks of a sharded vocabulary."""
        partials = row_stats(z_ZV, self.linear.target_T[part], **self.scaling)
        if self.linear.shard is not None:
            partials = reduce_partials(partials, self.linear.shard.group)
        row = finished(partials)
        for out_T, value_Z in zip(self.numbers, row, strict=True):
            out_T[part].copy_(value_Z)
        return row

    def gradient(
        self,
        part: slice,
        z_ZV: Tensor,
        dz_ZV: Tensor,
        row: RowNumbers,
        c_Z: Tensor | None,
        e_Z: Tensor | None = None,
        g_Z: Tensor | None = None,
    ) -> None:
        """d logits of a part, from the gradients of its log-probabilities, entropies and log-sum-exps."""
        known = (self.linear.target_T[part], row.lse_T, row.entropy_T, c_Z, e_Z)
        row_gradient_(z_ZV, *known, g_T=g_Z, out=dz_ZV, **self.scaling)
