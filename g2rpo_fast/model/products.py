"""The backbone's linear maps under mixed precision, for all micro-batches of an optimiser step.

    y = x W^T + b,    dx = dy W,    dW += dy^T x,    db = column sums of dy

x, W, b and dy are rounded to the compute dtype, as autocast rounds them: W and b once instead of in each
micro-batch, and x once for all maps that read it (queries, keys, values; gate, up). dW is added to W's own
gradient, and the dx of maps with one input to each other, in float32: on a GPU inside the products, which are
not rounded then; elsewhere, where these give the compute dtype only, in one pass over it.

Weights that are kept in the compute dtype (`model/half.py`) are their own rounding. Whatever is no plain
`nn.Linear` (experts' stacks, GPT-2's transposed maps) autocast rounds each time that it is used.

Dimension key: N positions, I inputs, O outputs.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from g2rpo_kernels.linear_logprob.products import add_product_, product
from torch import Tensor, nn
from transformers import PreTrainedModel

from g2rpo_fast.backbone import encoder_of


@contextmanager
def rounded_weights(model: PreTrainedModel, dtype: torch.dtype) -> Iterator[None]:
    """Within it the linear maps before the last one multiply by weights that were rounded to `dtype` at its
    beginning, and a backward pass adds to the weights' `.grad`, in float32. Nothing is different where
    `dtype` is wider than 2 bytes.

    The weights must not change within it before a backward pass has left their layer, and a backward pass of
    a forward within it must be within it too.
    Tensor hooks of weights, and `torch.autograd.grad` with respect to them, see no gradient. Takes `dtype`'s
    bytes for each weight until it ends.
    """
    taken = _maps(encoder_of(model), dtype) if dtype.itemsize < 4 else []
    inputs = _Inputs(dtype)
    for module in taken:
        module.forward = MethodType(_Map(_Rounded.of(module, dtype), inputs), module)
    try:
        yield
    finally:
        for module in taken:
            del module.forward


def _maps(encoder: nn.Module, dtype: torch.dtype) -> list[nn.Linear]:
    """Those with weights in float32, or in `dtype` with gradients in float32 or none."""
    plain = [m for m in encoder.modules() if type(m) is nn.Linear and "forward" not in vars(m)]
    return [m for m in plain if type(m.weight) is nn.Parameter and _fits(m.weight, dtype)]


def _fits(weight: nn.Parameter, dtype: torch.dtype) -> bool:
    if weight.requires_grad and weight.grad_dtype != torch.float32:  # pyright: ignore[reportAttributeAccessIssue]
        return False
    return weight.dtype in (torch.float32, dtype)


@dataclass(frozen=True)
class _Rounded:
    """A map's weights."""

    weight_OI: Tensor
    """The parameter. In the compute dtype:"""
    half_OI: Tensor
    half_O: Tensor | None

    @staticmethod
    def of(module: nn.Linear, dtype: torch.dtype) -> _Rounded:
        bias_O = module.bias
        half_O = None if bias_O is None else bias_O.detach().to(dtype)
        return _Rounded(module.weight, module.weight.detach().to(dtype), half_O)


@dataclass
class _Shared:
    """What the maps that read one rounded input share in a backward pass, from the first to the last."""

    dtype: torch.dtype
    """That it was rounded from."""
    x_NI: Tensor | None = None
    """The input, rounded."""
    dx_NI: Tensor | None = None
    """The sum of its gradients, in `dtype`."""


@dataclass
class _Inputs:
    """Rounds an input once for maps that read it one after the other."""

    dtype: torch.dtype
    _of: Any = field(default=lambda: None)
    """Weak: which tensor that was."""
    _state: tuple[int, bool] = 0, False
    _rounded: tuple[Tensor, _Shared] | None = None

    def __call__(self, x: Tensor) -> tuple[Tensor, _Shared]:
        state = x._version, torch.is_grad_enabled()
        if self._rounded is None or self._of() is not x or self._state != state:
            shared = _Shared(x.dtype)
            self._rounded = _Round.apply(x, self.dtype, shared), shared  # pyright: ignore[reportAttributeAccessIssue]
            self._of, self._state = weakref.ref(x), state
        return self._rounded


@dataclass(frozen=True)
class _Map:
    """A linear module's forward."""

    rounded: _Rounded
    inputs: _Inputs

    def __call__(self, module: nn.Linear, input: Tensor) -> Tensor:
        if not torch.is_autocast_enabled(input.device.type):
            return nn.Linear.forward(module, input)
        x, shared = self.inputs(input)
        return _Product.apply(x, module.weight, module.bias, self.rounded, shared)  # pyright: ignore[reportReturnType]


class _Round(torch.autograd.Function):
    """x in another dtype. Its gradient is what the maps that read it left in `shared`.

    Keeps x for them: before their products, so that these are not the last that a checkpoint computes again.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype, shared: _Shared) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.shared, ctx.shape = shared, x.shape
        half = x.to(dtype)
        ctx.save_for_backward(half)
        return half

    @staticmethod
    def backward(ctx: Any, dx: Tensor | None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        assert dx is None, "only linear maps read a rounded input"
        dx_NI = ctx.shared.dx_NI
        ctx.shared.x_NI = ctx.shared.dx_NI = None
        return None if dx_NI is None else dx_NI.view(ctx.shape), None, None


class _Product(torch.autograd.Function):
    """y [..., O] in the compute dtype. `weight_OI` is there so that autograd asks for its gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight_OI: Tensor, bias_O: Tensor | None, rounded: _Rounded, shared: _Shared
    ) -> Tensor:
        ctx.rounded, ctx.shared = rounded, shared
        if not ctx.needs_input_grad[0]:
            ctx.save_for_backward(x)
        return F.linear(x, rounded.half_OI, rounded.half_O)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        assert not torch.is_grad_enabled(), "differentiable once"
        dy_NO, dbias_O = dy.flatten(0, -2), None
        need_x, need_weight, need_bias, *_ = ctx.needs_input_grad
        if need_weight:
            weight_OI = ctx.rounded.weight_OI
            weight_OI.grad = _added(weight_OI.grad, dy_NO.T, _kept_input(ctx), torch.float32)
        if need_x:
            ctx.shared.dx_NI = _added(ctx.shared.dx_NI, dy_NO, ctx.rounded.half_OI, ctx.shared.dtype)
        if need_bias:
            dbias_O = dy_NO.sum(0, dtype=torch.float32)
        return None, None, dbias_O, None, None


def _kept_input(ctx: Any) -> Tensor:
    """[N, I] what `_Product` multiplied, unpacked once for all maps: checkpoints allow no more."""
    if not ctx.needs_input_grad[0]:
        return ctx.saved_tensors[0].flatten(0, -2)
    if ctx.shared.x_NI is None:
        (round_node, _), *_ = ctx.next_functions
        ctx.shared.x_NI = round_node.saved_tensors[0].flatten(0, -2)
    return ctx.shared.x_NI


def _added(total: Tensor | None, left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """total + left @ right, in place; None = nothing yet, of `dtype`."""
    if left.device.type != "cuda":
        part = left @ right
        return part.to(dtype) if total is None else total.add_(part)
    if total is not None:
        add_product_(total, left, right)
        return total
    return product(left, right, left.new_empty(left.shape[0], right.shape[1], dtype=dtype))
