"""An LM head that is a DTensor, as `fully_shard` (FSDP2) leaves it: the whole, which the ops multiply by.

    forward    the whole of every rank's part: one all-gather
    backward   d part = the part of mean over ranks of d whole: one reduce-scatter

The mean is what FSDP2 makes of the gradients of ranks that have each their own rows. Where all ranks have the
same rows (tensor parallelism) their gradients are equal, and the mean is one of them; such heads need not be
gathered at all, see `VocabShard`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from g2rpo_kernels.checks import is_sharded

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def whole(name: str, value: Tensor | None) -> Any:
    """A plain tensor as it is; a DTensor gathered, whose gradient comes back in its placements.

    All ranks of its mesh must call together, and run backward together. Raises ValueError for placements that
    are partial sums.
    """
    if value is None or not is_sharded(value):
        return value
    placements = getattr(value, "placements")  # noqa: B009
    if any(placement.is_partial() for placement in placements):
        raise ValueError(f"{name}: wanted placements of Shard or Replicate, got {placements}")
    return _Whole.apply(value)


class _Whole(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sharded: DTensor) -> Tensor:
        ctx.mesh, ctx.placements = sharded.device_mesh, sharded.placements
        return sharded.full_tensor()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        from torch.distributed.tensor import DTensor, Partial

        each = DTensor.from_local(grad, ctx.mesh, [Partial()] * ctx.mesh.ndim, run_check=False)
        return each.redistribute(placements=ctx.placements) / ctx.mesh.size()
