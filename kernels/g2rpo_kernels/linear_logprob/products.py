"""Matrix products that are summed, and rounded at most once, in the dtype of their output.

On CUDA half operands multiply on the tensor cores with float32 output (`aten::mm.dtype_out`,
`addmm.dtype_out`; an accumulator in float32 is taken since torch 2.10). The CPU has no such op: there the
operands are cast. Operands of float32 follow PyTorch's own setting of TF32.
"""

from __future__ import annotations

import torch
from torch import Tensor


def product(left: Tensor, right: Tensor, out: Tensor) -> Tensor:
    """left @ right, to `out`."""
    if left.dtype == out.dtype:
        return torch.mm(left, right, out=out)
    if out.device.type == "cuda":
        return torch.mm(left, right, out_dtype=out.dtype, out=out)
    return torch.mm(left.to(out.dtype), right.to(out.dtype), out=out)


def add_product_(total: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """total += left @ right."""
    if left.dtype == total.dtype:
        return total.addmm_(left, right)
    if total.device.type == "cuda":
        return torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    return total.addmm_(left.to(total.dtype), right.to(total.dtype))
