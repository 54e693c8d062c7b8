"""Hidden states x head as exponentials: a matrix product whose logits never leave the chip.

The product's programs hold a tile of float32 logits h in registers. They write exp(h - m) in the operands'
dtype, with m each row's maximum within the tile, and per row and tile m and what the statistics of a row are
made of (`logprob.triton_tiles`). A row kernel then reads and writes 2 bytes a logit; float32 logits, read
twice, cost it 10. The rounding of exp(h - m) is that of d logits, once more: relative, so that no probability
loses its digits to a larger one. Sums are of the unrounded values.

For Hopper: the operands come by its tensor copy engine.

Dimension key: C rows of a chunk, V vocabulary, D width, N column tiles. Suffixes in the kernel: m rows and n
columns of a tile.
"""

# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from g2rpo_kernels.linear_logprob.device_chunks import even_chunks
from g2rpo_kernels.linear_logprob.linear import HALVES, Linear
from g2rpo_kernels.logprob.partials import RowNumbers
from g2rpo_kernels.logprob.triton_launch import interpreting, on_device
from g2rpo_kernels.logprob.triton_rows import FLOOR, LOG2_E, at_least
from g2rpo_kernels.logprob.triton_tiles import TILE_COLUMNS, Exponentials, tile_gradient_, tile_numbers

BLOCK_C, BLOCK_V, BLOCK_D = 128, TILE_COLUMNS, 64
"""Of several tiles the fastest on an H100 at D = 2048 and at 4096."""
GROUP = 32
"""Row tiles that go over the same columns side by side: the head is read once for all of them."""
OPTIONS: dict[str, Any] = {
    "BLOCK_M": BLOCK_C, "BLOCK_N": BLOCK_V, "BLOCK_K": BLOCK_D, "GROUP": GROUP,
    "num_warps": 8, "num_stages": 3, "enable_fp_fusion": True,
}  # fmt: skip
TARGET_OPTIONS: dict[str, Any] = {"BLOCK_D": 1024}
LEAST_COLUMNS = 4096
"""Below, what is saved of a row is less than a launch more."""
ALIGNED = 16
"""Bytes that the copy engine wants of addresses and strides."""


@triton.jit
def exponential_kernel(
    x_desc,
    head_desc,
    out_desc,
    target_ptr,
    max_ptr,
    rest_ptr,
    moment_ptr,
    num_c,
    num_v,
    width,
    scale_2,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    PROGRAMS: tl.constexpr,
):
    """`scale_2`: 1 / (T log 2). Moments are in units of log 2. `out_desc` None: statistics alone."""
    num_m, num_n = tl.cdiv(num_c, BLOCK_M), tl.cdiv(num_v, BLOCK_N)
    for tile in tl.range(tl.program_id(0), num_m * num_n, PROGRAMS, flatten=True):
        first_m = tile // (GROUP * num_n) * GROUP
        size = min(num_m - first_m, GROUP)
        row = (first_m + tile % (GROUP * num_n) % size) * BLOCK_M
        column_tile = tile % (GROUP * num_n) // size
        column = column_tile * BLOCK_N
        h_mn = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for k in range(tl.cdiv(width, BLOCK_K)):
            x_mk = x_desc.load([row, k * BLOCK_K])
            head_nk = head_desc.load([column, k * BLOCK_K])
            h_mn = tl.dot(x_mk, head_nk.T, h_mn)
        row_m = row + tl.arange(0, BLOCK_M)
        inside_m = row_m < num_c
        lane_n = tl.arange(0, BLOCK_N)
        h_mn = tl.where(lane_n[None, :] < num_v - column, h_mn, float("-inf"))
        max_m = tl.max(h_mn, 1)
        below_mn = at_least((h_mn - max_m[:, None]) * scale_2, FLOOR)
        exp_mn = tl.exp2(below_mn)
        target_m = tl.load(target_ptr + row_m, mask=inside_m, other=-1).to(tl.int32) - column
        rest_mn = tl.where(lane_n[None, :] == target_m[:, None], 0.0, exp_mn)
        place_m = row_m.to(tl.int64) * num_n + column_tile
        tl.store(max_ptr + place_m, max_m, mask=inside_m)
        tl.store(rest_ptr + place_m, tl.sum(rest_mn, 1), mask=inside_m)
        tl.store(moment_ptr + place_m, tl.sum(below_mn * rest_mn, 1), mask=inside_m)
        if out_desc is not None:
            out_desc.store([row, column], exp_mn.to(out_desc.dtype))


@triton.jit
def target_logit_kernel(
    x_ptr, head_ptr, target_ptr, out_ptr, width, x_stride, head_stride, BLOCK_D: tl.constexpr
):
    """The logit of each row's target: products of halves are exact in float32, their sum is float64. In the
    product's epilogue it would cost the registers that a tile has not got."""
    c = tl.program_id(0).to(tl.int64)
    x_ptr += c * x_stride
    head_ptr += tl.load(target_ptr + c).to(tl.int64) * head_stride
    lane_d = tl.arange(0, BLOCK_D)
    sum_d = tl.zeros((BLOCK_D,), tl.float64)
    for start in range(0, width, BLOCK_D):
        inside_d = lane_d < width - start
        x_d = tl.load(x_ptr + start + lane_d, mask=inside_d, other=0.0).to(tl.float32)
        head_d = tl.load(head_ptr + start + lane_d, mask=inside_d, other=0.0).to(tl.float32)
        sum_d += (x_d * head_d).to(tl.float64)
    tl.store(out_ptr + c, tl.sum(sum_d, 0).to(tl.float32))


def takes_exponentials(linear: Linear) -> bool:
    """Whether a problem's logits can stay on the chip here: Hopper, half operands, nothing done to logits
    but to divide by a temperature, rows that the copy engine takes. From shapes and the chip alone, so that
    ranks and runs agree."""
    head_VD = linear.head_VD
    hopper = interpreting() or (
        head_VD.is_cuda and torch.cuda.get_device_capability(head_VD.device) == (9, 0)
    )
    plain = linear.softcap is None and linear.bias_V is None and linear.shard is None
    half = linear.product_dtype in HALVES
    return hopper and plain and half and len(head_VD) >= LEAST_COLUMNS and head_VD.shape[1] % 8 == 0


@dataclass(frozen=True)
class ExponentialPart:
    """A chunk, all of it. Its exponentials, and d logits in their place, are gone when the next one comes."""

    rows: slice
    exponentials: Exponentials
    target_C: Tensor
    temperature: float

    def numbers(self) -> RowNumbers:
        """[C] each."""
        return tile_numbers(self.exponentials, self.temperature)

    def gradient(self, row: RowNumbers, c_C: Tensor | None, e_C: Tensor | None, g_C: Tensor | None) -> None:
        """d logits, from the gradients of log-probabilities, entropies and log-sum-exps."""
        tile_gradient_(self.exponentials, self.target_C, row, c_C, e_C, g_C, self.temperature)


class ExponentialRows:
    """The buffers of a problem's chunks: what `DeviceRows` is, where `takes_exponentials`.

    `bound`: bytes that the most rows may take, at least one. `gradient`: whether exponentials are ever kept.
    """

    one_part = True

    def __init__(self, linear: Linear, bound: int, gradient: bool) -> None:
        self._linear, self._head_VD = linear, aligned(linear.head_VD)
        columns, itemsize = len(linear.head_VD), linear.head_VD.dtype.itemsize
        tiles = -(-columns // BLOCK_V)
        wide = -(-columns * itemsize // ALIGNED) * ALIGNED // itemsize if gradient else 0
        self.most_rows = max(1, min(linear.num_rows, bound // (wide * itemsize + 3 * 4 * tiles)))
        new = linear.head_VD.new_empty
        self._exp_CV = new((self.most_rows, wide))[:, :columns]
        self._tiles = new((3, self.most_rows, tiles), dtype=torch.float32)
        self._target_logit_C = new(self.most_rows, dtype=torch.float32)

    def chunks(self, rows: slice) -> list[slice]:
        return even_chunks(rows, self.most_rows)

    def parts(self, chunk: slice, x_CD: Tensor, *, keep: bool = True) -> Iterator[ExponentialPart]:
        """The chunk. `keep` False: for its numbers alone."""
        size = len(x_CD)
        kept_CV = self._exp_CV[:size] if keep else None
        max_CN, rest_CN, moment_CN = (x_CN[:size] for x_CN in self._tiles)
        given = Exponentials(kept_CV, max_CN, rest_CN, moment_CN, self._target_logit_C[:size])
        target_C = self._linear.target_T[chunk]
        self._fill(given, aligned(x_CD), target_C)
        yield ExponentialPart(chunk, given, target_C, self._linear.temperature)

    def dlogits(self, chunk: slice) -> Tensor:
        """[C, V] as the chunk's part was left."""
        return self._exp_CV[: chunk.stop - chunk.start]

    def _fill(self, given: Exponentials, x_CD: Tensor, target_C: Tensor) -> None:
        (size, width), head_VD, exp_CV = x_CD.shape, self._head_VD, given.exp_CV
        programs = min(-(-size // BLOCK_C) * given.max_CN.shape[1], _processors(x_CD))
        options: dict[str, Any] = OPTIONS | {"PROGRAMS": programs}
        with on_device(x_CD):
            exponential_kernel[(programs,)](
                _described(x_CD, BLOCK_C, BLOCK_D),
                _described(head_VD, BLOCK_V, BLOCK_D),
                None if exp_CV is None else _described(exp_CV, BLOCK_C, BLOCK_V),
                target_C,
                given.max_CN,
                given.rest_CN,
                given.moment_CN,
                num_c=size,
                num_v=len(head_VD),
                width=width,
                scale_2=LOG2_E.value / self._linear.temperature,
                **options,
            )
            target_logit_kernel[(size,)](
                x_CD,
                head_VD,
                target_C,
                given.target_logit_C,
                width=width,
                x_stride=x_CD.stride(0),
                head_stride=head_VD.stride(0),
                **TARGET_OPTIONS,
            )


def _described(x_RD: Tensor, *block: int) -> TensorDescriptor:
    return TensorDescriptor.from_tensor(x_RD, list(block))


def aligned(x_RD: Tensor) -> Tensor:
    """The matrix, copied where the copy engine would refuse its address or strides."""
    size = x_RD.element_size()
    fits = x_RD.stride(1) == 1 and x_RD.stride(0) * size % ALIGNED == 0 and x_RD.data_ptr() % ALIGNED == 0
    return x_RD if fits else x_RD.clone(memory_format=torch.contiguous_format)


def _processors(x: Tensor) -> int:
    """Programs that are there at once; how many does not change a bit of the result."""
    return torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 2
