"""x W^T on a CPU for many small x and one W: through oneDNN, with W packed once in the layout it reads.

A plain product of few rows packs W anew in each call. Decoding makes thousands of them between two changes of
the weights.

Dimension key: N rows, I columns in, O columns out.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST = 1 << 18
"""Numbers of a weight. Smaller ones stay in the caches, where a plain product is as fast."""
DTYPES = (torch.float32, torch.bfloat16)


class PackedWeight:
    """A copy of `weight_OI` [O, I] (float32 or bfloat16, on the CPU); changes of it are not seen.

    Called with x [N, I] of its dtype: x W^T [N, O] of that dtype, plus the bias [O] where there is one. Sums
    are float32. Without gradients.
    """

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None = None) -> None:
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight_OI.detach().contiguous(), None)
        self._bias_O = bias_O

    def __call__(self, x_NI: Tensor) -> Tensor:
        num_rows = len(x_NI)
        x_NI = F.pad(x_NI, (0, 0, 0, padded_rows(num_rows) - num_rows)).contiguous()
        out_NO = torch.ops.mkldnn._linear_pointwise(x_NI, self._packed, self._bias_O, "none", [], "")
        return out_NO[:num_rows]


def padded_rows(num_rows: int) -> int:
    """A few sizes: oneDNN compiles a product for each and keeps it, in 0.6 MB. At most a quarter is added, or
    up to the next multiple of eight, which costs nothing: few rows wait for the weight."""
    step = max(8, (1 << max(num_rows - 1, 1).bit_length()) // 8)
    return -(-num_rows // step) * step


def worth_packing(weight_OI: Tensor) -> bool:
    """It is large enough, and this PyTorch can."""
    fits = weight_OI.device.type == "cpu" and weight_OI.dtype in DTYPES and weight_OI.numel() >= LEAST
    return fits and packs(weight_OI.dtype)


@cache
def packs(dtype: torch.dtype) -> bool:
    """PyTorch has the product, and computes it within twice the error of its plain one.

    The operators are PyTorch's own for its compiler: not public, so they are tried before they are trusted.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    with torch.inference_mode():
        x_NI, weight_OI = _numbers(5, 96).to(dtype), _numbers(64, 96).to(dtype)
        exact = x_NI.double() @ weight_OI.double().T
        try:
            packed = PackedWeight(weight_OI)(x_NI)
        except (RuntimeError, NotImplementedError, AttributeError):
            return False
        plain = x_NI @ weight_OI.T
    if packed.dtype != dtype or packed.shape != plain.shape:
        return False
    error, allowed = ((made.double() - exact).abs().max().item() for made in (packed, plain))
    rounding = torch.finfo(dtype).eps * exact.abs().max().item()
    return error <= 2 * allowed + rounding


def _numbers(rows: int, columns: int) -> Tensor:
    """Some, without touching the random state: between -1 and 1."""
    return (
        torch.arange(rows * columns, dtype=torch.float64)
        .mul_(0.7548776662466927)
        .frac_()
        .mul_(2)
        .sub_(1)
        .view(rows, -1)
    )
