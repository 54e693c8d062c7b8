"""Counting what an op does: multiply-adds of its matrix products, and the largest tensor that it makes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from g2rpo_kernels.linear_logprob import cpu as linear_logprob_cpu
from g2rpo_kernels.linear_policy_loss import cpu as linear_policy_loss_cpu
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

BODIES = {
    "g2rpo::linear_logprob_cpu": linear_logprob_cpu.forward_cpu,
    "g2rpo::linear_logprob_cpu_backward": linear_logprob_cpu.backward_cpu,
    "g2rpo::linear_policy_gradients_cpu": linear_policy_loss_cpu.gradients_cpu,
}
PRODUCTS = {"mm": slice(2), "matmul": slice(2), "addmm": slice(1, 3), "addmm_": slice(1, 3)}
"""Op -> which of its arguments are the factors."""
CASTS = ("to", "_to_copy")


class Work(TorchDispatchMode):
    """Casts do not count among the tensors: CUDA does without.

    `bodies`: operators to look into. `dimension`: count products with a factor of this size alone.
    """

    def __init__(
        self, bodies: dict[str, Callable[..., Any]] | None = None, *, dimension: int | None = None
    ) -> None:
        super().__init__()
        self._dimension = dimension
        self.products = 0
        self.largest_bytes = 0
        self._bodies = BODIES if bodies is None else bodies

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        body = self._bodies.get(func.name())
        if body is not None:
            with self:
                return body(*args, **(kwargs or {}))
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in PRODUCTS:
            left, right = args[PRODUCTS[name]]
            sizes = (left.shape[0], left.shape[1], right.shape[1])
            if self._dimension is None or self._dimension in sizes:
                self.products += math.prod(sizes)
        for value in out if isinstance(out, tuple | list) else (out,):
            if isinstance(value, Tensor) and value._base is None and name not in CASTS:
                self.largest_bytes = max(self.largest_bytes, value.numel() * value.element_size())
        return out
