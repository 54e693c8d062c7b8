"""A loss whose gradients of hidden states, head and bias are computed already, as a function of these; on a
GPU, where they are multiplied by the loss's own gradient and rounded in one pass."""

# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from g2rpo_kernels.logprob.triton_launch import on_device

BLOCK = 8192
OPTIONS: dict[str, Any] = {"BLOCK": BLOCK, "num_warps": 8, "enable_fp_fusion": False}


@torch.library.custom_op("g2rpo::linear_policy_loss", mutates_args=())
def attach_op(
    loss: Tensor,
    hidden_SD: Tensor,
    head_VD: Tensor,
    bias_V: Tensor | None,
    unscale: Tensor | None,
    dhidden_SD: Tensor | None,
    dhead_VD: Tensor | None,
    dbias_V: Tensor | None,
) -> Tensor:
    """The loss, as a function with these gradients; backward multiplies and rounds them, once each."""
    return loss.clone()


@attach_op.register_fake
def _(loss: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(loss)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, hidden_SD, head_VD, bias_V, *computed = inputs
    ctx.save_for_backward(*computed)
    ctx.dtypes = [None if like is None else like.dtype for like in (hidden_SD, head_VD, bias_V)]


@once_differentiable
def _backward(ctx: Any, grad_loss: Tensor) -> Any:
    unscale, *gradients = ctx.saved_tensors
    factor = grad_loss if unscale is None else grad_loss * unscale
    pairs = zip(gradients, ctx.dtypes, strict=True)
    grads = [None if value is None else _times(value, factor, dtype) for value, dtype in pairs]
    return None, *grads, None, None, None, None


attach_op.register_autograd(_backward, setup_context=_save)


@triton.jit
def times_kernel(value_ptr, factor_ptr, out_ptr, num, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    product = tl.load(value_ptr + place, mask=place < num) * tl.load(factor_ptr).to(tl.float32)
    tl.store(out_ptr + place, product.to(out_ptr.dtype.element_ty), mask=place < num)


@torch.library.custom_op("g2rpo::rounded_product", mutates_args=())
def _times(value: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """value * factor in `dtype`. PyTorch's product reaches 40% of the memory's rate where dtypes differ."""
    if value.dtype == dtype:
        return value * factor
    value = value.contiguous()
    out = torch.empty_like(value, dtype=dtype)
    if value.numel():
        with on_device(value):
            times_kernel[(triton.cdiv(value.numel(), BLOCK),)](value, factor, out, value.numel(), **OPTIONS)
    return out


@_times.register_fake
def _(value: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(value, dtype=dtype)
