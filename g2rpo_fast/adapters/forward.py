"""The forward of an adapted linear map: what PEFT's modules compute, with fewer copies.

    y0 = x W^T + b,  h = x A^T
    lora:  y = y0 + s h B^T
    dora:  y = m / n * (y0 - b + s h B^T) + b,    n_o = |W_o + s B_o A|, a constant of the step

s h B^T is added in place: PEFT makes two more tensors of y's size in each map, and what is kept of h between
them leaves a CPU's memory in pieces. n comes from |W_o|^2 and products with A, without the merged weight.

Dimension key: N positions, I inputs, O outputs, R rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from g2rpo_kernels.linear_logprob.products import product
from torch import Tensor, nn

from g2rpo_fast.adapters.base import dense_weight
from g2rpo_fast.adapters.merged import NAME, adapter_layers


def use_own_forwards(model: nn.Module) -> int:
    """Lets the adapted maps compute through these; those that are no `nn.Linear` stay PEFT's. Returns how
    many do. Instances only: `layer.forward` deleted undoes it."""
    layers = [x for x in adapter_layers(model).values() if isinstance(x.get_base_layer(), nn.Linear)]
    for layer in layers:
        square_O = None
        if layer.lora_variant:
            square_O = dense_weight(layer.get_base_layer()).square().sum(1)
        layer.forward = MethodType(_Forward(square_O), layer)
    return len(layers)


@dataclass(frozen=True)
class _Forward:
    """Of one layer; holds no module, so that copies of a model have their own."""

    square_O: Tensor | None
    """|W_o|^2; None = lora."""

    def __call__(self, layer: Any, x: Tensor) -> Tensor:
        y = layer.base_layer(x)
        if layer.disable_adapters:
            return y
        weight_OR = layer.lora_B[NAME].weight
        y = _AddLowRank.apply(y, layer.lora_A[NAME](x), weight_OR, layer.scaling[NAME])
        assert isinstance(y, Tensor)
        if self.square_O is None:
            return y
        factor_O = layer.lora_magnitude_vector[NAME].weight / _norms(layer, self.square_O)
        bias_O = layer.get_base_layer().bias
        if bias_O is None:
            return (y * factor_O).to(y.dtype)
        return torch.addcmul(bias_O - bias_O * factor_O, y.to(factor_O.dtype), factor_O).to(y.dtype)


@torch.no_grad()
def _norms(layer: Any, square_O: Tensor) -> Tensor:
    """[O] norms of the merged weight's rows, float32 or wider."""
    a_RI, b_OR, scale = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight, layer.scaling[NAME]
    with torch.autocast(square_O.device.type, enabled=False):
        cross_OR = dense_weight(layer.get_base_layer()) @ a_RI.T
        added_O = (b_OR * (2 * scale * cross_OR + scale**2 * (b_OR @ (a_RI @ a_RI.T)))).sum(1)
    return (square_O + added_O).clamp_min(0).sqrt()


class _AddLowRank(torch.autograd.Function):
    """y += s h B^T, in place, y [..., O] and h [..., R] in one dtype. dB is summed in B's."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, h: Tensor, weight_OR: Tensor, scale: float) -> Tensor:
        ctx.mark_dirty(y)
        h = h.to(y.dtype)
        ctx.save_for_backward(h, weight_OR)
        ctx.scale = scale
        y.view(-1, y.shape[-1]).addmm_(h.reshape(-1, h.shape[-1]), weight_OR.to(y.dtype).T, alpha=scale)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        h, weight_OR = ctx.saved_tensors
        dy_NO, h_NR = dy.flatten(0, -2), h.flatten(0, -2)
        dh = dweight_OR = None
        if ctx.needs_input_grad[1]:
            dh = ((dy_NO @ weight_OR.to(dy.dtype)) * ctx.scale).view(h.shape)
        if ctx.needs_input_grad[2]:
            dweight_OR = product(dy_NO.T, h_NR, torch.empty_like(weight_OR)) * ctx.scale
        return dy, dh, dweight_OR, None
