"""Numbers drawn from a seed of their own."""

from __future__ import annotations

import torch
from torch import Tensor


def normal(*shape: int, seed: int) -> Tensor:
    """Standard normal, float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
