"""Which implementation of tree attention does what is asked: a function of the chip and the shape alone."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from g2rpo_kernels.tree_attention.tiles import CHIPS, MAX_WIDTH

Impl = Literal["reference", "cascade", "triton"]


class Query(NamedTuple):
    """What there is to know of the queries."""

    dtype: torch.dtype
    width: int
    capability: tuple[int, int] | None
    """Of the CUDA device; None elsewhere."""

    @classmethod
    def of(cls, q_SHE: Tensor) -> Query:
        capability = torch.cuda.get_device_capability(q_SHE.device) if q_SHE.is_cuda else None
        return cls(q_SHE.dtype, q_SHE.shape[2], capability)


def default_impl(query: Query, window: int | None, softcap: float | None, longest_path: int) -> Impl:
    """The first of cascade, triton (CUDA only) and reference that can do it."""
    if unsupported_cascade(query, window, softcap, longest_path) is None:
        return "cascade"
    if query.capability is not None and unsupported_triton(query) is None:
        return "triton"
    return "reference"


def unsupported_cascade(
    query: Query, window: int | None, softcap: float | None, longest_path: int
) -> str | None:
    """What keeps the cascade from doing this (wanted, got), or None."""
    if softcap is not None:
        return f"wanted no softcap, got {softcap}"
    if window is not None and window < longest_path:
        return f"wanted no window or one that hides nothing (at least {longest_path}), got {window}"
    if query.capability is None:
        return None
    if query.dtype not in (torch.bfloat16, torch.float16):
        return f"wanted bfloat16 or float16 on CUDA, got {query.dtype}"
    return _unsupported_width(query)


def unsupported_triton(query: Query) -> str | None:
    """What keeps the Triton kernels from taking such tensors (wanted, got), or None.

    CPU tensors pass: whether the interpreter is on is for `triton` to say.
    """
    if query.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        return f"wanted bfloat16, float16 or float32, got {query.dtype}"
    if query.capability is not None and query.capability not in CHIPS:
        return f"wanted one of the compute capabilities {sorted(CHIPS)}, got {query.capability}"
    return _unsupported_width(query)


def _unsupported_width(query: Query) -> str | None:
    if query.width % 8 or not 0 < query.width <= MAX_WIDTH:
        return f"wanted a head width of at most {MAX_WIDTH}, a multiple of 8, got {query.width}"
    return None
