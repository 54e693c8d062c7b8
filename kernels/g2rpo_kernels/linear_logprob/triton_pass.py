"""A pass over a linear problem's rows on a GPU: what all linear ops do with a part of them.

Dimension key: T rows, C rows of a chunk, Z rows of a part, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from g2rpo_kernels.linear_logprob.device_chunks import DeviceRows, DeviceSums, LogitPart, chunk_bound
from g2rpo_kernels.linear_logprob.linear import Linear
from g2rpo_kernels.linear_logprob.triton_exponentials import (
    ExponentialPart,
    ExponentialRows,
    takes_exponentials,
)
from g2rpo_kernels.logprob.partials import RowNumbers

Part = LogitPart | ExponentialPart


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
        bound, gradient = chunk_bound(chunk_bytes), any(needs)
        rows = ExponentialRows if takes_exponentials(self.linear) else DeviceRows
        self.device_rows: ExponentialRows | DeviceRows = rows(self.linear, bound, gradient)
        self.sums = DeviceSums(self.linear, needs)
        self.numbers = empty_numbers(self.linear)

    @property
    def everything(self) -> slice:
        return slice(0, self.linear.num_rows)

    def statistics(self, rows: slice) -> None:
        """Fills the numbers of a run of rows; no gradient."""
        for chunk in self.device_rows.chunks(rows):
            for part in self.device_rows.parts(chunk, self.linear.rows(chunk), keep=False):
                self.found(part)

    def found(self, part: Part) -> RowNumbers:
        """The numbers of a part."""
        row = part.numbers()
        for out_T, value_Z in zip(self.numbers, row, strict=True):
            out_T[part.rows].copy_(value_Z)
        return row
