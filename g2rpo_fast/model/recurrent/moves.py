"""Rows of a tensor moved to other places, some to several: their gradients are added up in one order, and in
float32 at least.

Dimension key: I rows given, J rows made, M moves.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def put(x_I: Tensor, target_I: Tensor, size: int) -> Tensor:
    """y [size, ...] with y[target_I] = x_I and zeros elsewhere; no two rows have one target."""
    return _Put.apply(x_I, target_I, size)  # pyright: ignore[reportReturnType]


def picked(x_I: Tensor, source_J: Tensor) -> Tensor:
    """y [J, ...] = x_I[source_J]; no row is picked twice."""
    return _Picked.apply(x_I, source_J)  # pyright: ignore[reportReturnType]


def repeated(x_I: Tensor, source_J: Tensor) -> Tensor:
    """y [J, ...] = x_I[source_J]; a row may be there several times."""
    return _Repeated.apply(x_I, source_J)  # pyright: ignore[reportReturnType]


def _placed(x_I: Tensor, target_I: Tensor, size: int) -> Tensor:
    filled = torch.empty if len(target_I) == size else torch.zeros
    y_J = filled(size, *x_I.shape[1:], dtype=x_I.dtype, device=x_I.device)
    return y_J.index_copy_(0, target_I, x_I)


class _Put(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_I: Tensor, target_I: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(target_I)
        return _placed(x_I, target_I, size)

    @staticmethod
    def backward(ctx: Any, dy_J: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return dy_J.index_select(0, ctx.saved_tensors[0]), None, None


class _Picked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_I: Tensor, source_J: Tensor) -> Tensor:
        ctx.save_for_backward(source_J)
        ctx.size = len(x_I)
        return x_I.index_select(0, source_J)

    @staticmethod
    def backward(ctx: Any, dy_J: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _placed(dy_J, ctx.saved_tensors[0], ctx.size), None


class _Repeated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_I: Tensor, source_J: Tensor) -> Tensor:
        ctx.save_for_backward(source_J)
        ctx.size = len(x_I)
        return x_I.index_select(0, source_J)

    @staticmethod
    def backward(ctx: Any, dy_J: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        (source_J,) = ctx.saved_tensors
        sums = torch.promote_types(dy_J.dtype, torch.float32)
        dx_I = dy_J.new_zeros(ctx.size, *dy_J.shape[1:], dtype=sums)
        if dy_J.device.type == "cpu":
            dx_I.index_add_(0, source_J, dy_J.to(sums))
        else:  # it sorts; index_add_ has no order there
            dx_I.index_put_((source_J,), dy_J.to(sums), accumulate=True)
        return dx_I.to(dy_J.dtype), None
