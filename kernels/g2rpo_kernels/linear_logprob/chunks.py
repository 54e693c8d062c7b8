"""Row chunks of hidden x head: logits of a chunk with their statistics, and the gradient products of a chunk.

    z = x W^T + b,    dX = dz W,    dW = dz^T x,    db = column sums of dz

One buffer [C, V] holds a chunk's logits and then, compacted to the rows that have a gradient, its d logits.
dX and dW accumulate in float32 (float64 for float64) in a fixed order, so results are deterministic.

Dimension key: S positions, D width, V vocabulary, T rows, C rows of a chunk, A rows of it with a gradient.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from g2rpo_kernels.logprob.checks import accumulation_dtype, check_index, check_scaling
from g2rpo_kernels.logprob.rows import (
    RowGradients,
    RowStats,
    dlogits_,
    dlogits_of_exp_,
    empty_stats,
    row_stats,
    squash_,
    tiles,
)


@dataclass(frozen=True, kw_only=True)
class Linear:
    """One problem: row t predicts `target_T[t]` from `hidden_SD[source_T[t]]` (None = `hidden_SD[t]`)."""

    hidden_SD: Tensor
    head_VD: Tensor
    target_T: Tensor
    source_T: Tensor | None
    bias_V: Tensor | None
    temperature: float
    softcap: float | None

    @property
    def dtype(self) -> torch.dtype:
        return accumulation_dtype(torch.promote_types(self.hidden_SD.dtype, self.head_VD.dtype))

    @property
    def num_rows(self) -> int:
        return len(self.target_T)

    def accumulating(self) -> Linear:
        """The same problem in the accumulation dtype: copies only what is narrower."""
        bias_V = None if self.bias_V is None else self.bias_V.to(self.dtype)
        hidden_SD, head_VD = self.hidden_SD.to(self.dtype), self.head_VD.to(self.dtype)
        return replace(self, hidden_SD=hidden_SD, head_VD=head_VD, bias_V=bias_V)

    def rows(self, chunk: slice) -> Tensor:
        """[C, D] hidden states that the chunk's rows predict from."""
        if self.source_T is None:
            return self.hidden_SD[chunk]
        return self.hidden_SD.index_select(0, self.source_T[chunk])


def checked_linear(
    hidden_SD: Tensor,
    head_VD: Tensor,
    target_T: Tensor,
    source_T: Tensor | None,
    bias_V: Tensor | None,
    temperature: float,
    softcap: float | None,
) -> Linear:
    """Validate the arguments that the linear ops share; raises ValueError."""
    if hidden_SD.dim() != 2 or head_VD.dim() != 2 or hidden_SD.shape[1] != head_VD.shape[1]:
        raise ValueError(
            "hidden_SD, head_VD: wanted [S, D] and [V, D],"
            f" got {list(hidden_SD.shape)} and {list(head_VD.shape)}"
        )
    if not (hidden_SD.is_floating_point() and head_VD.is_floating_point()):
        raise ValueError(f"hidden_SD, head_VD: wanted floating, got {hidden_SD.dtype}, {head_VD.dtype}")
    if bias_V is not None and list(bias_V.shape) != [head_VD.shape[0]]:
        raise ValueError(f"bias_V: wanted [{head_VD.shape[0]}], got {list(bias_V.shape)}")
    num_rows = len(hidden_SD) if source_T is None else len(source_T)
    check_index("target_T", target_T, len(head_VD), num_rows)
    if source_T is not None:
        check_index("source_T", source_T, len(hidden_SD))
    check_scaling(temperature, softcap)
    return Linear(
        hidden_SD=hidden_SD,
        head_VD=head_VD,
        target_T=target_T.long(),
        source_T=None if source_T is None else source_T.long(),
        bias_V=bias_V,
        temperature=temperature,
        softcap=softcap,
    )


def chunks(num_rows: int, row_bytes: int, chunk_bytes: int) -> list[slice]:
    """Rows split evenly into as few chunks as keep each within `chunk_bytes` (one row at least)."""
    if chunk_bytes < 1:
        raise ValueError(f"chunk_bytes: wanted >= 1, got {chunk_bytes}")
    if not num_rows:
        return []
    number = -(-num_rows // max(1, chunk_bytes // row_bytes))
    step = -(-num_rows // number)
    return [slice(start, min(start + step, num_rows)) for start in range(0, num_rows, step)]


class ChunkBuffer:
    """The chunks of a problem and the one [C, V] buffer that they take turns in.

    With `keep_exp` (no softcap, no gradient of the entropy) statistics leave exp(z - max) there: it saves the
    second exp.
    """

    def __init__(self, linear: Linear, chunk_bytes: int, keep_exp: bool = False) -> None:
        vocab = len(linear.head_VD)
        self.row_bytes = vocab * linear.dtype.itemsize
        self.chunks = chunks(linear.num_rows, self.row_bytes, chunk_bytes)
        largest = max((chunk.stop - chunk.start for chunk in self.chunks), default=0)
        self._buffer_CV = torch.empty((largest, vocab), dtype=linear.dtype)
        self._linear = linear
        self._keep_exp = keep_exp

    def logits(self, chunk: slice, x_CD: Tensor) -> Tensor:
        """[C, V] held logits (see `squash_`) of the chunk, in the buffer."""
        linear = self._linear
        z_CV = torch.mm(x_CD, linear.head_VD.T, out=self._buffer_CV[: chunk.stop - chunk.start])
        if linear.bias_V is None and linear.softcap is None:
            return z_CV
        for tile in tiles(len(z_CV), self.row_bytes):
            if linear.bias_V is not None:
                z_CV[tile].add_(linear.bias_V)
            squash_(z_CV[tile], linear.softcap)
        return z_CV

    def write_stats(self, z_CV: Tensor, chunk: slice, out: RowStats) -> None:
        """Statistics of the chunk's logits, to its rows `out`."""
        linear, target_C = self._linear, self._linear.target_T[chunk]
        for tile in tiles(len(z_CV), self.row_bytes):
            stats = row_stats(
                z_CV[tile], target_C[tile], linear.temperature, linear.softcap, keep_exp=self._keep_exp
            )
            for out_C, value_C in zip(out.rows(tile), stats, strict=True):
                out_C.copy_(value_C)

    def dlogits(
        self, z_CV: Tensor, chunk: slice, active_A: Tensor | None, stats: RowStats, upstream: RowGradients
    ) -> Tensor:
        """[A, V] d logits of the rows `active_A` (None = all C) of a chunk's logits.

        They are written over the front of the chunk: never ahead of a row still to be read.
        """
        linear, target_C = self._linear, self._linear.target_T[chunk]
        num_active = len(z_CV) if active_A is None else len(active_A)
        for tile in tiles(num_active, self.row_bytes):
            rows = tile if active_A is None else active_A[tile]
            given = (z_CV[rows], target_C[rows], stats.rows(rows), upstream.rows(rows), linear.temperature)
            dz_CV = dlogits_of_exp_(*given) if self._keep_exp else dlogits_(*given, linear.softcap)
            if active_A is not None:
                z_CV[tile] = dz_CV
        return z_CV[:num_active]


def chunked_stats(given: Linear, chunk_bytes: int) -> RowStats:
    """Statistics of all T rows; no gradient."""
    linear = given.accumulating()
    buffer, stats = ChunkBuffer(linear, chunk_bytes), empty_stats(linear.num_rows, linear.dtype)
    for chunk in buffer.chunks:
        z_CV = buffer.logits(chunk, linear.rows(chunk))
        buffer.write_stats(z_CV, chunk, stats.rows(chunk))
    return stats


class GradientSums:
    """d hidden, d head and d bias, summed over chunks; None for what needs no gradient."""

    def __init__(self, linear: Linear, need_hidden: bool, need_head: bool, need_bias: bool) -> None:
        self._linear = linear
        # Without `source_T` every chunk writes its own rows: zeros would be one pass too many.
        new = torch.empty_like if linear.source_T is None else torch.zeros_like
        self.hidden_SD = new(linear.hidden_SD) if need_hidden else None
        self.head_VD = torch.zeros_like(linear.head_VD) if need_head else None
        self.bias_V = torch.zeros_like(linear.head_VD[:, 0]) if need_bias else None

    def add(
        self,
        buffer: ChunkBuffer,
        chunk: slice,
        x_CD: Tensor,
        z_CV: Tensor,
        stats: RowStats,
        upstream: RowGradients,
    ) -> None:
        """The gradient products of one chunk, rows without gradient left out. Destroys `z_CV`."""
        active_A = _active_rows(upstream)
        dz_AV = buffer.dlogits(z_CV, chunk, active_A, stats, upstream)
        if self.head_VD is not None:
            self.head_VD.addmm_(dz_AV.T, x_CD if active_A is None else x_CD[active_A])
        if self.bias_V is not None:
            self.bias_V.add_(dz_AV.sum(0))
        if self.hidden_SD is not None:
            self._add_hidden(self.hidden_SD, chunk, active_A, dz_AV)

    def _add_hidden(self, sum_SD: Tensor, chunk: slice, active_A: Tensor | None, dz_AV: Tensor) -> None:
        linear = self._linear
        if linear.source_T is not None:
            source_C = linear.source_T[chunk]
            source_A = source_C if active_A is None else source_C[active_A]
            sum_SD.index_add_(0, source_A, dz_AV @ linear.head_VD)
        elif active_A is not None:
            sum_SD[chunk].zero_()[active_A] = dz_AV @ linear.head_VD
        else:
            torch.mm(dz_AV, linear.head_VD, out=sum_SD[chunk])

    def cast(self, linear: Linear) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """In the dtypes of the original `linear`'s tensors."""
        pairs = (
            (self.hidden_SD, linear.hidden_SD),
            (self.head_VD, linear.head_VD),
            (self.bias_V, linear.bias_V),
        )
        hidden_SD, head_VD, bias_V = (
            None if gradient is None or like is None else gradient.to(like.dtype) for gradient, like in pairs
        )
        return hidden_SD, head_VD, bias_V


def _active_rows(upstream: RowGradients) -> Tensor | None:
    """Indices of rows with any gradient; None when that is every row."""
    active_C = upstream.c_C != 0
    for value_C in (upstream.e_C, upstream.g_C):
        if value_C is not None:
            active_C = active_C | (value_C != 0)
    return None if bool(active_C.all()) else active_C.nonzero().squeeze(1)
