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

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from g2rpo_kernels.linear_logprob.linear import HALVES, Linear
from g2rpo_kernels.logprob.triton_launch import interpreting, on_device
from g2rpo_kernels.logprob.triton_rows import FLOOR, LOG2_E, at_least

BLOCK_C, BLOCK_V, BLOCK_D = 128, 256, 64
"""Of several tiles the fastest on an H100 at D = 2048 and at 4096."""
GROUP = 32
"""Row tiles that go over the same columns side by side: the head is read once for all of them."""
OPTIONS: dict[str, Any] = {
    "BLOCK_M": BLOCK_C, "BLOCK_N": BLOCK_V, "BLOCK_K": BLOCK_D, "GROUP": GROUP,
    "num_warps": 8, "num_stages": 3, "enable_fp_fusion": True,
}  # fmt: skip
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
    """`scale_2`: 1 / (T log 2). Moments are in units of log 2."""
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


class Exponentials(NamedTuple):
    """A chunk of rows as exponentials, their statistics tile by tile. Without temperature but in `exp_CV`."""

    exp_CV: Tensor
    """exp((h - maximum of its tile) / T), in the operands' dtype; d logits take its place."""
    max_CN: Tensor
    """float32."""
    rest_CN: Tensor
    """float32: sum of exp over a tile's columns but the target."""
    moment_CN: Tensor
    """float32: sum of exp and its exponent, in units of log 2, over the same."""
    target_logit_C: Tensor
    """float32."""


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


class ExponentialRows:
    """The buffers of a problem's chunks."""

    def __init__(self, linear: Linear, bound: int) -> None:
        columns, itemsize = len(linear.head_VD), linear.head_VD.dtype.itemsize
        self._head_VD = aligned(linear.head_VD)
        self._scale_2 = LOG2_E.value / linear.temperature
        tiles = -(-columns // BLOCK_V)
        wide = -(-columns * itemsize // ALIGNED) * ALIGNED // itemsize
        row_bytes = wide * itemsize + 3 * 4 * tiles
        self.most_rows = max(1, min(linear.num_rows, bound // row_bytes))
        new = linear.head_VD.new_empty
        self._exp_CV = new((self.most_rows, wide))[:, :columns]
        self._tiles = new((3, self.most_rows, tiles), dtype=torch.float32)
        self._target_logit_C = new(self.most_rows, dtype=torch.float32)

    def fill(self, x_CD: Tensor, target_C: Tensor) -> Exponentials:
        """Those of some rows, at most `most_rows`; gone when the next come. `target_C`: int64 in [0, V)."""
        size = len(x_CD)
        max_CN, rest_CN, moment_CN = self._tiles[:, :size]
        out = Exponentials(self._exp_CV[:size], max_CN, rest_CN, moment_CN, self._target_logit_C[:size])
        x_CD = aligned(x_CD)
        programs = min(-(-size // BLOCK_C) * max_CN.shape[1], _processors(x_CD))
        with on_device(x_CD):
            exponential_kernel[(programs,)](
                TensorDescriptor.from_tensor(x_CD, [BLOCK_C, BLOCK_D]),
                TensorDescriptor.from_tensor(self._head_VD, [BLOCK_V, BLOCK_D]),
                TensorDescriptor.from_tensor(out.exp_CV, [BLOCK_C, BLOCK_V]),
                target_C,
                max_CN,
                rest_CN,
                moment_CN,
                size,
                len(self._head_VD),
                x_CD.shape[1],
                self._scale_2,
                **OPTIONS,
                **_constants(PROGRAMS=programs),
            )
            target_logit_kernel[(size,)](
                x_CD,
                self._head_VD,
                target_C,
                out.target_logit_C,
                width=x_CD.shape[1],
                x_stride=x_CD.stride(0),
                head_stride=self._head_VD.stride(0),
                **_constants(BLOCK_D=1024),
            )
        return out


def aligned(x_RD: Tensor) -> Tensor:
    """The matrix, copied where the copy engine would refuse its address or strides."""
    size = x_RD.element_size()
    fits = x_RD.stride(1) == 1 and x_RD.stride(0) * size % ALIGNED == 0 and x_RD.data_ptr() % ALIGNED == 0
    return x_RD if fits else x_RD.clone(memory_format=torch.contiguous_format)


def _constants(**constants: int) -> dict[str, Any]:
    return constants


def _processors(x: Tensor) -> int:
    """Programs that are there at once; how many does not change a bit of the result."""
    return torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 2
