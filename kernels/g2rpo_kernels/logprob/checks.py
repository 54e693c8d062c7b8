"""Checks and dtypes that all log-probability ops share. Dimension key: T rows, V vocabulary."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from g2rpo_kernels.checks import check_tensors, readable

Impl = Literal["reference", "cpu", "triton"]


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 stays; everything narrower is computed in float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def choose_impl(impl: Impl | None, values: Tensor) -> Impl:
    """The documented default: `cpu` on the CPU, `triton` on CUDA, `reference` for float64 and elsewhere.

    An explicit `impl` never falls back: ValueError where it does not run.
    """
    device = values.device.type
    fast: dict[str, Impl] = {"cpu": "cpu", "cuda": "triton"}
    default: Impl = "reference" if values.dtype == torch.float64 else fast.get(device, "reference")
    chosen = default if impl is None else impl
    if chosen not in get_args(Impl):
        raise ValueError(f"impl: wanted 'reference', 'cpu', 'triton' or None, got {impl!r}")
    if chosen == "cpu" and device != "cpu":
        raise ValueError(f"impl='cpu': wanted tensors on the CPU, got {values.device}")
    if chosen == "triton" and device != "cuda" and not _interpreting():
        raise ValueError(f"impl='triton': wanted CUDA tensors, got {values.device}")
    return chosen


def _interpreting() -> bool:
    from g2rpo_kernels.logprob.triton_launch import interpreting

    return interpreting()


def check_scaling(temperature: float, softcap: float | None) -> None:
    """Both must be positive and finite: they divide."""
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature: wanted > 0 and finite, got {temperature}")
    if softcap is not None and not 0 < softcap < math.inf:
        raise ValueError(f"softcap: wanted > 0 and finite, or None, got {softcap}")


def check_index(name: str, index_T: Tensor, size: int, length: int | None = None) -> None:
    """`index_T` is one-dimensional, integer, of `length`, and inside [0, size).

    The range is checked where it is `readable`: elsewhere indexing reports it.
    """
    if index_T.dim() != 1 or index_T.dtype not in (torch.int64, torch.int32):
        raise ValueError(
            f"{name}: wanted a vector of int64 or int32, got {list(index_T.shape)} {index_T.dtype}"
        )
    if length is not None and len(index_T) != length:
        raise ValueError(f"{name}: wanted {length} entries, got {len(index_T)}")
    if readable(index_T) and len(index_T):
        low, high = (int(v) for v in torch.aminmax(index_T))
        if low < 0 or high >= size:
            raise ValueError(f"{name}: wanted values in [0, {size}), got {low}..{high}")


def check_rows(logits_TV: Tensor, target_T: Tensor, temperature: float, softcap: float | None) -> None:
    """What the ops on logits share."""
    check_tensors({"logits_TV": logits_TV, "target_T": target_T})
    if logits_TV.dim() != 2 or not logits_TV.is_floating_point():
        raise ValueError(f"logits_TV: wanted [T, V] floating, got {list(logits_TV.shape)} {logits_TV.dtype}")
    check_index("target_T", target_T, logits_TV.shape[1], logits_TV.shape[0])
    check_scaling(temperature, softcap)
