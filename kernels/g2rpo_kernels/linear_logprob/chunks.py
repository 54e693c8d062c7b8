"""Row chunks of hidden x head: logits of a chunk with their statistics, and the gradient products of a chunk.

    z = x W^T + b,    dX = dz W,    dW = dz^T x,    db = column sums of dz

One buffer [C, V] holds a chunk's logits and then, compacted to the rows that have a gradient, its d logits.
dX and dW accumulate in float32 (float64 for float64) in a fixed order, so results are deterministic.

Dimension key: S positions, D width, V vocabulary, T rows, C rows of a chunk, A rows of it with a gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from g2rpo_kernels.linear_logprob.linear import Linear
from g2rpo_kernels.linear_logprob.shard import reduce_partials
from g2rpo_kernels.logprob.rows import (
    RowGradients,
    RowStats,
    empty_stats,
    exp_factors,
    finish_stats,
    squash_,
    tiles,
)
from g2rpo_kernels.logprob.sweeps import chunk_dlogits, chunk_partials

CHUNK_BYTES = 128 << 20
"""Most bytes of logits, unless the caller says otherwise."""
DEVICE_CHUNK_BYTES = 1_500_000_000
"""The same on a GPU, of logits and their gradient. It is here for those who count memory without Triton."""


def most_rows(linear: Linear, row_bytes: int, chunk_bytes: int | None) -> int:
    """Rows whose logits fit the bound, one at least; the same on every rank of a sharded vocabulary."""
    bound = CHUNK_BYTES if chunk_bytes is None else chunk_bytes
    if bound < 1:
        raise ValueError(f"chunk_bytes: wanted >= 1, got {chunk_bytes}")
    return max(1, min(linear.num_rows, bound // row_bytes))


def even_chunks(rows: slice, most: int) -> list[slice]:
    """`rows` split evenly into as few runs as have at most `most` rows each."""
    num_rows = rows.stop - rows.start
    if not num_rows:
        return []
    step = -(-num_rows // -(-num_rows // most))
    return [slice(start, min(start + step, rows.stop)) for start in range(rows.start, rows.stop, step)]


class ChunkBuffer:
    """The one [C, V] buffer that the chunks of a problem take turns in.

    With `keep_exp` (no softcap, no gradient of the entropy) the statistics leave d logits there but for a
    factor of the row, which multiplies hidden states and d hidden instead: no second sweep over the logits.
    """

    def __init__(self, linear: Linear, chunk_bytes: int | None, keep_exp: bool = False) -> None:
        self.most_rows = most_rows(linear, linear.chunk_columns * linear.dtype.itemsize, chunk_bytes)
        vocab = len(linear.head_VD)
        self._row_bytes = vocab * linear.dtype.itemsize
        self._buffer_CV = torch.empty((self.most_rows, vocab), dtype=linear.dtype)
        self._linear = linear
        self.keep_exp = keep_exp and linear.shard is None

    @property
    def chunks(self) -> list[slice]:
        return even_chunks(slice(0, self._linear.num_rows), self.most_rows)

    def logits(self, chunk: slice, x_CD: Tensor) -> Tensor:
        """[C, V] held logits (see `squash_`) of the chunk, in the buffer."""
        linear = self._linear
        z_CV = torch.mm(x_CD, linear.head_VD.T, out=self._buffer_CV[: chunk.stop - chunk.start])
        if linear.bias_V is None and linear.softcap is None:
            return z_CV
        for tile in tiles(len(z_CV), self._row_bytes):
            if linear.bias_V is not None:
                z_CV[tile].add_(linear.bias_V)
            squash_(z_CV[tile], linear.softcap)
        return z_CV

    def forward(self, chunk: slice, stats: RowStats) -> tuple[Tensor, Tensor, RowStats]:
        """(hidden states, logits, statistics) of a chunk; the last are its rows of `stats`, filled."""
        x_CD, row = self._linear.rows(chunk), stats.rows(chunk)
        z_CV = self.logits(chunk, x_CD)
        self._write_stats(z_CV, chunk, row)
        return x_CD, z_CV, row

    def _write_stats(self, z_CV: Tensor, chunk: slice, out: RowStats) -> None:
        linear = self._linear
        partials = chunk_partials(
            z_CV,
            linear.target_T[chunk],
            linear.temperature,
            linear.softcap,
            keep_exp=self.keep_exp,
            some_elsewhere=linear.shard is not None,
        )
        if linear.shard is not None:
            partials = reduce_partials(partials, linear.shard.group)
        for out_C, value_C in zip(out, finish_stats(partials), strict=True):
            out_C.copy_(value_C)

    def dlogits(
        self, z_CV: Tensor, chunk: slice, active_A: Tensor | None, stats: RowStats, upstream: RowGradients
    ) -> tuple[Tensor, Tensor | None]:
        """d logits of the rows `active_A` (None = all C) of a chunk's logits: [A, V], and rows' factors [A].

        They are written over the front of the chunk: never ahead of a row still to be read.
        """
        linear, target_C = self._linear, self._linear.target_T[chunk]
        scaling, elsewhere = (linear.temperature, linear.softcap), linear.shard is not None
        if active_A is None:
            if not self.keep_exp:
                chunk_dlogits(
                    z_CV, target_C, stats, upstream, *scaling, some_elsewhere=elsewhere, out_CV=z_CV
                )
        else:
            target_C, stats, upstream = target_C[active_A], stats.rows(active_A), upstream.rows(active_A)
            for tile in tiles(len(active_A), self._row_bytes):
                rows_CV = z_CV.index_select(0, active_A[tile])
                given = (target_C[tile], stats.rows(tile), upstream.rows(tile))
                if not self.keep_exp:
                    chunk_dlogits(rows_CV, *given, *scaling, some_elsewhere=elsewhere, out_CV=rows_CV)
                z_CV[tile] = rows_CV
            z_CV = z_CV[: len(active_A)]
        if not self.keep_exp:
            return z_CV, None
        factor_A = exp_factors(stats, upstream, linear.temperature)
        if z_CV.shape[1] > 2 * linear.head_VD.shape[1]:
            return z_CV, factor_A
        return z_CV.mul_(factor_A[:, None]), None  # moves less than a copy of hidden states and d hidden


def chunked_stats(given: Linear, chunk_bytes: int | None) -> RowStats:
    """Statistics of all T rows; no gradient."""
    linear = given.rounded(given.dtype)
    buffer, stats = ChunkBuffer(linear, chunk_bytes), empty_stats(linear.num_rows, linear.dtype)
    for chunk in buffer.chunks:
        buffer.forward(chunk, stats)
    return stats


class GradientSums:
    """d hidden, d head and d bias, summed over chunks; None for what needs no gradient."""

    def __init__(self, linear: Linear, need_hidden: bool, need_head: bool, need_bias: bool) -> None:
        self._linear = linear
        self._added = False
        # The first chunk writes d head, and each its own rows of d hidden where `source_T` is None: zeros
        # would be one pass too many.
        new = torch.empty_like if linear.source_T is None else torch.zeros_like
        self.hidden_SD = new(linear.hidden_SD) if need_hidden else None
        self.head_VD = torch.empty_like(linear.head_VD) if need_head else None
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
        active_A = _active_rows(upstream, *self._linear.head_VD.shape)
        dz_AV, factor_A = buffer.dlogits(z_CV, chunk, active_A, stats, upstream)
        if self.head_VD is not None:
            x_AD = x_CD if active_A is None else x_CD.index_select(0, active_A)
            x_AD = x_AD if factor_A is None else x_AD * factor_A[:, None]
            self.head_VD.addmm_(dz_AV.T, x_AD, beta=int(self._added))
        self._added = True
        if self.bias_V is not None:
            self.bias_V.add_(dz_AV.sum(0) if factor_A is None else dz_AV.T @ factor_A)
        if self.hidden_SD is not None:
            self._add_hidden(self.hidden_SD, chunk, active_A, dz_AV, factor_A)

    def _add_hidden(
        self, sum_SD: Tensor, chunk: slice, active_A: Tensor | None, dz_AV: Tensor, factor_A: Tensor | None
    ) -> None:
        source_T, head_VD = self._linear.source_T, self._linear.head_VD
        in_place = source_T is None and active_A is None
        dx_AD = torch.mm(dz_AV, head_VD, out=sum_SD[chunk]) if in_place else dz_AV @ head_VD
        if factor_A is not None:
            dx_AD.mul_(factor_A[:, None])
        if source_T is not None:
            source_C = source_T[chunk]
            sum_SD.index_add_(0, source_C if active_A is None else source_C[active_A], dx_AD)
        elif active_A is not None:
            sum_SD[chunk].zero_().index_copy_(0, active_A, dx_AD)

    def finish(self, given: Linear) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Over all ranks, in the dtypes of `given`'s (hidden, head, bias)."""
        if self.head_VD is not None and not self._added:
            self.head_VD.zero_()
        if self.hidden_SD is not None and given.shard is not None:
            torch.distributed.all_reduce(self.hidden_SD, group=given.shard.group)
        pairs = (
            (self.hidden_SD, given.hidden_SD),
            (self.head_VD, given.head_VD),
            (self.bias_V, given.bias_V),
        )
        hidden_SD, head_VD, bias_V = (
            None if gradient is None or like is None else gradient.to(like.dtype) for gradient, like in pairs
        )
        return hidden_SD, head_VD, bias_V


def _active_rows(upstream: RowGradients, vocab: int, width: int) -> Tensor | None:
    """Indices of rows with any gradient; None for all rows, where leaving out the others saves no time.

    It saves their 4 V D operations and costs the moving of 3 V + 2 D numbers for each row that stays. A CPU
    core does some 20 operations in the time of moving one number.
    """
    active_C = upstream.c_C != 0
    for value_C in (upstream.e_C, upstream.g_C):
        if value_C is not None:
            active_C = active_C | (value_C != 0)
    num_active = int(active_C.sum())
    saved, moved = (len(active_C) - num_active) * 4 * vocab * width, num_active * (3 * vocab + 2 * width)
    return active_C.nonzero().squeeze(1) if saved > 20 * moved else None
