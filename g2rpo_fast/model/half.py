"""Weights kept in bfloat16: 2 bytes a number in the place of 4, and no copy for the products.

Those of linear maps, embeddings and experts are; norms, biases and what recurrent layers decay by stay
float32, and so does the stream of hidden states between the layers: products and sums are those of float32
weights that happen to be bfloat16 numbers (of experts, which transformers multiplies without autocast, they
are in bfloat16 here). Gradients are float32, summed over micro-batches without rounding; that of the LM head
is rounded once in each.

Dimension key: N tokens, V vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

MAPS = (nn.Linear, nn.Embedding, Conv1D)
"""Modules whose `weight` is rounded; Conv1D is GPT-2's transposed linear map, no convolution."""
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@torch.no_grad()
def keep_half(model: PreTrainedModel) -> None:
    """Rounds a float32 model's large weights to bfloat16, in place; forwards want autocast to bfloat16."""
    for weight in half_weights(model):
        weight.data = weight.data.to(torch.bfloat16)
        weight.grad_dtype = torch.float32  # pyright: ignore[reportAttributeAccessIssue] (since torch 2.10)
    for module in model.modules():
        if type(module) is nn.Embedding:
            module.forward = MethodType(_embedded, module)
        elif isinstance(module, nn.Embedding):
            module.register_forward_hook(_widened)


def half_weights(model: nn.Module) -> Iterator[nn.Parameter]:
    """Those that `keep_half` rounds, once each."""
    seen: set[int] = set()
    for module in model.modules():
        if isinstance(module, CONVOLUTIONS):
            continue
        for name, parameter in module.named_parameters(recurse=False):
            map_of = isinstance(module, MAPS) and name == "weight"
            if (map_of or parameter.dim() >= 3) and id(parameter) not in seen:
                seen.add(id(parameter))
                yield parameter


def _embedded(module: nn.Embedding, input: Tensor) -> Tensor:
    return _Lookup.apply(input, module.weight, module.padding_idx)  # pyright: ignore[reportReturnType]


def _widened(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    """Of embeddings with something more to them, whose gradients are summed as PyTorch sums bfloat16."""
    return output.float()


class _Lookup(torch.autograd.Function):
    """Rows of bfloat16 weights [V, D] as float32 [N..., D]; their gradients are summed in float32."""

    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight_VD: Tensor, padding_idx: int | None) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.num, ctx.padding_idx = len(weight_VD), -1 if padding_idx is None else padding_idx
        return F.embedding(ids, weight_VD).float()

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        (ids,) = ctx.saved_tensors
        given = (dy, ids, ctx.num, ctx.padding_idx, False)
        return None, torch.ops.aten.embedding_dense_backward(*given), None
