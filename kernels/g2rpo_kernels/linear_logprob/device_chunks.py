"""Row chunks of hidden x head on a GPU: buffers, and the gradient products of a chunk.

A chunk's d logits are kept whole, in the operands' dtype, because each chunk adds to d head [V, D] in float32
and few large additions cost least. Its float32 logits are needed once: they come in smaller parts through a
buffer of their own. With float32 operands d logits take the place of the logits, and a chunk is one part.

    1.5 GB at V = 151,936 in bfloat16: parts of 384 rows (0.23 GB), chunks of up to 4,168 rows (1.27 GB).

On Hopper the logits of half operands do not come to memory at all: `triton_exponentials`.

Rows without gradient stay in the products, as rows of zeros: how many there are is known on the device only,
and asking for it would stall the host. Leave out beforehand what the host knows (rows of zero advantage).
Sums run in a fixed order without atomics, so results are the same bit for bit from run to run.

Dimension key: S positions, D width, V vocabulary, T rows, C rows of a chunk, Z rows of a part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from g2rpo_kernels.linear_logprob.chunks import DEVICE_CHUNK_BYTES
from g2rpo_kernels.linear_logprob.linear import Linear
from g2rpo_kernels.linear_logprob.products import add_product_, product
from g2rpo_kernels.linear_logprob.shard import reduce_partials
from g2rpo_kernels.logprob.partials import RowNumbers, finished
from g2rpo_kernels.logprob.triton import row_gradient_, row_stats

ROW_TILE = 128
"""Matrix products are cut in tiles of this many rows: parts and chunks are whole numbers of them."""
PART_SHARE = 6
"""One part in so many of the bound is for float32 logits."""


@dataclass(frozen=True)
class LogitPart:
    """Some rows of a chunk as float32 logits without bias, gone when the next part comes."""

    rows: slice
    z_ZV: Tensor
    dz_ZV: Tensor
    """Where d logits go; may be the logits."""
    linear: Linear

    @property
    def target_Z(self) -> Tensor:
        return self.linear.target_T[self.rows]

    @property
    def scaling(self) -> dict[str, Any]:
        """Keyword arguments of the row kernels."""
        linear = self.linear
        return {"temperature": linear.temperature, "softcap": linear.softcap, "bias_V": linear.bias_V}

    def numbers(self) -> RowNumbers:
        """[Z] each, over all ranks of a sharded vocabulary."""
        partials = row_stats(self.z_ZV, self.target_Z, **self.scaling)
        if self.linear.shard is not None:
            partials = reduce_partials(partials, self.linear.shard.group)
        return finished(partials)

    def gradient(self, row: RowNumbers, c_Z: Tensor | None, e_Z: Tensor | None, g_Z: Tensor | None) -> None:
        """d logits, from the gradients of log-probabilities, entropies and log-sum-exps."""
        known = (self.target_Z, row.lse_T, row.entropy_T, c_Z, e_Z)
        row_gradient_(self.z_ZV, *known, g_T=g_Z, out=self.dz_ZV, **self.scaling)


class DeviceRows:
    """Logits of a problem's rows, part by part; with `gradient` also room for a chunk's d logits.

    `bound`: bytes that both may take.
    """

    def __init__(self, linear: Linear, bound: int, gradient: bool) -> None:
        self._linear = linear
        self.most_rows, part_rows = _rows(linear, bound, gradient)
        vocab, device = len(linear.head_VD), linear.head_VD.device
        self._logits_ZV = torch.empty((part_rows, vocab), dtype=torch.float32, device=device)
        self._dlogits_CV = self._logits_ZV
        if gradient and linear.head_VD.dtype != torch.float32:
            self._dlogits_CV = torch.empty((self.most_rows, vocab), dtype=linear.head_VD.dtype, device=device)

    @property
    def one_part(self) -> bool:
        """Whether a chunk's logits are all there at once."""
        return self._logits_ZV.shape[0] >= self.most_rows

    def parts(self, chunk: slice, x_CD: Tensor, *, keep: bool = True) -> Iterator[LogitPart]:
        """Each part of a chunk. `keep` False: for its numbers alone."""
        step = len(self._logits_ZV)
        for start in range(0, len(x_CD), step):
            x_ZD = x_CD[start : start + step]
            z_ZV = product(x_ZD, self._linear.head_VD.T, self._logits_ZV[: len(x_ZD)])
            stop = start + len(x_ZD)
            dz_ZV = z_ZV if self._dlogits_CV is self._logits_ZV else self._dlogits_CV[start:stop]
            yield LogitPart(slice(chunk.start + start, chunk.start + stop), z_ZV, dz_ZV, self._linear)

    def dlogits(self, chunk: slice) -> Tensor:
        """[C, V] as the parts of the chunk filled it."""
        return self._dlogits_CV[: chunk.stop - chunk.start]

    def chunks(self, rows: slice) -> list[slice]:
        return even_chunks(rows, self.most_rows)


def chunk_bound(chunk_bytes: int | None) -> int:
    """Bytes of logits and their gradient; ValueError for none."""
    bound = DEVICE_CHUNK_BYTES if chunk_bytes is None else chunk_bytes
    if bound < 1:
        raise ValueError(f"chunk_bytes: wanted >= 1, got {chunk_bytes}")
    return bound


def even_chunks(rows: slice, most_rows: int) -> list[slice]:
    """`rows` in as few chunks as fit, of about one size."""
    num_rows = rows.stop - rows.start
    if not num_rows:
        return []
    step = -(-num_rows // -(-num_rows // most_rows))
    if most_rows >= ROW_TILE:
        step = min(most_rows, -(-step // ROW_TILE) * ROW_TILE)
    return [slice(start, min(start + step, rows.stop)) for start in range(rows.start, rows.stop, step)]


def _rows(linear: Linear, bound: int, gradient: bool) -> tuple[int, int]:
    """Most rows of a chunk and of a part; the same on every rank of a sharded vocabulary."""
    logits_bytes = 4 * linear.chunk_columns
    if not gradient or linear.head_VD.dtype == torch.float32:
        most = max(1, min(linear.num_rows, bound // logits_bytes))
        return most, most
    part_rows = bound // PART_SHARE // logits_bytes
    if part_rows > ROW_TILE:
        part_rows -= part_rows % ROW_TILE
    part_rows = max(1, min(linear.num_rows, part_rows))
    rest = (bound - part_rows * logits_bytes) // (linear.head_VD.dtype.itemsize * linear.chunk_columns)
    return max(1, min(linear.num_rows, rest)), part_rows


class DeviceSums:
    """d hidden, d head and d bias in float32, summed over chunks; None for what needs no gradient."""

    def __init__(self, linear: Linear, needs: Sequence[bool]) -> None:
        self._linear = linear
        self._added = False
        need_hidden, need_head, need_bias = needs

        # Without `source_T` every chunk writes its own rows of d hidden; the first one writes d head.
        hidden = torch.empty_like if linear.source_T is None else torch.zeros_like
        self.hidden_SD = hidden(linear.hidden_SD, dtype=torch.float32) if need_hidden else None
        self.head_VD = torch.empty_like(linear.head_VD, dtype=torch.float32) if need_head else None
        self.bias_V = torch.zeros(len(linear.head_VD), device=linear.head_VD.device) if need_bias else None

    def add(self, chunk: slice, x_CD: Tensor, dz_CV: Tensor, late_C: Tensor | None = None) -> None:
        """The gradient products of one chunk. `late_C`: a factor of each row that `dz_CV` has not got yet."""
        if self.hidden_SD is not None:
            self._add_hidden(self.hidden_SD, chunk, dz_CV, late_C)
        if late_C is not None:
            x_CD = (x_CD * late_C[:, None]).to(x_CD.dtype)
        if self.head_VD is not None:
            (add_product_ if self._added else _first_product)(self.head_VD, dz_CV.T, x_CD)
        if self.bias_V is not None and late_C is None:
            self.bias_V.add_(dz_CV.sum(0, dtype=torch.float32))
        elif self.bias_V is not None and late_C is not None:
            add_product_(self.bias_V[None], late_C[None].to(dz_CV.dtype), dz_CV)
        self._added = True

    def _add_hidden(self, sum_SD: Tensor, chunk: slice, dz_CV: Tensor, late_C: Tensor | None) -> None:
        linear = self._linear
        direct = linear.source_T is None
        dx_CD = sum_SD[chunk] if direct else sum_SD.new_empty((len(dz_CV), sum_SD.shape[1]))
        product(dz_CV, linear.head_VD, dx_CD)
        if late_C is not None:
            dx_CD.mul_(late_C[:, None])
        if linear.source_T is not None:
            # Sorts on CUDA, where `index_add_` would add in any order.
            sum_SD.index_put_((linear.source_T[chunk],), dx_CD, accumulate=True)

    def finish(self) -> list[Tensor | None]:
        """Gradients of (hidden, head, bias), over all ranks."""
        if self.head_VD is not None and not self._added:
            self.head_VD.zero_()
        if self.hidden_SD is not None and self._linear.shard is not None:
            torch.distributed.all_reduce(self.hidden_SD, group=self._linear.shard.group)
        return [self.hidden_SD, self.head_VD, self.bias_V]


def _first_product(total: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """`add_product_` to what is not filled yet."""
    return product(left, right, total)
