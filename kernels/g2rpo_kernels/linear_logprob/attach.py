"""A loss whose gradients of hidden states, head and bias are computed already, as a function of these; on a
CPU, where they are handed over. On a GPU: `triton_attach`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@torch.library.custom_op("g2rpo::linear_policy_loss_cpu", mutates_args=())
def hand_over_op(
    loss: Tensor,
    hidden_SD: Tensor,
    head_VD: Tensor,
    bias_V: Tensor | None,
    dhidden_SD: Tensor | None,
    dhead_VD: Tensor | None,
    dbias_V: Tensor | None,
) -> Tensor:
    """The loss, as a function with these gradients. Backward hands them over, so it runs once."""
    return loss.clone()


@hand_over_op.register_fake
def _(loss: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(loss)


@torch.library.custom_op("g2rpo::scale_", mutates_args=("value",))
def scale_(value: Tensor, factor: Tensor) -> None:
    if float(factor) != 1.0:  # Multiplying by exactly 1 would only cost a pass over d head.
        value.mul_(factor)


@scale_.register_fake
def _(value: Tensor, factor: Tensor) -> None:
    return None


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    # Not saved for backward: what autograd holds is copied when it is accumulated.
    ctx.gradients = inputs[4:]


@once_differentiable
def _hand_over(ctx: Any, grad_loss: Tensor) -> Any:
    if ctx.gradients is None:
        raise RuntimeError("linear loss: backward ran already; its gradients were handed over")
    gradients, ctx.gradients = ctx.gradients, None
    for value in gradients:
        if value is not None:
            scale_(value, grad_loss)
    return None, *gradients, None, None, None


hand_over_op.register_autograd(_hand_over, setup_context=_keep)
