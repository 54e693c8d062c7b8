"""A frozen linear map of 4-bit weights, by bitsandbytes. Imports it.

    y = x W^T + b,    W = scale of its block * one of 16 numbers (NF4; QLoRA, arXiv 2305.14314)

bitsandbytes' own forward rounds b to the compute dtype for good, and on some CPUs packs W anew in passes
without a gradient, whose products then are of another precision than those of training: not so here.
"""

from __future__ import annotations

from typing import Any

import torch
from bitsandbytes.autograd._functions import matmul_4bit
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn.modules import Linear4bit, Params4bit
from torch import Tensor, nn

from g2rpo_fast.adapters.base import NF4


class FourBitLinear(Linear4bit):
    """Of a float32 map; its bias is that map's."""

    def __init__(self, linear: nn.Linear, compute_dtype: torch.dtype) -> None:
        super().__init__(
            linear.in_features,
            linear.out_features,
            bias=False,
            compute_dtype=compute_dtype,
            quant_type=NF4,
            device=torch.device("meta"),
        )
        packed: Any = Params4bit
        self.weight = packed(linear.weight.detach(), requires_grad=False, quant_type=NF4, module=self)
        self.bias = linear.bias
        self.to(linear.weight.device)  # which quantises

    def forward(self, x: Tensor) -> Tensor:
        weight: Any = self.weight
        y = matmul_4bit(x.to(self.compute_dtype), weight, quant_state=weight.quant_state)
        return y if self.bias is None else y + self.bias


def dequantised(weight: Any) -> Tensor:
    """[O, I] float32 of a packed weight."""
    return dequantize_4bit(weight.detach(), weight.quant_state)
