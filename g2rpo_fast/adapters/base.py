"""What the frozen linear maps of a model with adapters are kept in.

    float32     as they were loaded
    bfloat16    rounded once; what is multiplied in bfloat16 anyway is not changed by it
    nf4         4 bits a weight and a scale for each 64 (QLoRA, arXiv 2305.14314), by bitsandbytes

Those of the backbone, adapted or not. Embeddings, norms, biases and the LM head stay float32.

Dimension key: O outputs, I inputs of a linear map.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from g2rpo_fast.backbone import backbone_of

NF4 = "nf4"
BASE = ".base_layer"
"""Where a layer of PEFT's holds the map that it adapts."""


def linear_maps(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """The backbone's plain ones by name, before adapters are on them."""
    return {name: m for name, m in backbone_of(model).named_modules() if type(m) is nn.Linear}


def quantise(model: PreTrainedModel, compute_dtype: torch.dtype) -> None:
    """Puts bitsandbytes' 4-bit maps in the place of the backbone's linear maps."""
    from g2rpo_fast.adapters.four_bits import FourBitLinear

    backbone = backbone_of(model)
    for name, linear in linear_maps(model).items():
        parent, _, leaf = name.rpartition(".")
        setattr(backbone.get_submodule(parent), leaf, FourBitLinear(linear, compute_dtype))


def halve(maps: dict[str, nn.Linear]) -> None:
    """Rounds these maps' weights to bfloat16."""
    for linear in maps.values():
        linear.weight.data = linear.weight.detach().to(torch.bfloat16)


def kept_in(model: nn.Module) -> str:
    """What the frozen linear maps of a model with adapters are kept in."""
    bases = [m for name, m in model.named_modules() if name.endswith(BASE)]
    if any(getattr(m.weight, "quant_state", None) is not None for m in bases):
        return NF4
    return "bfloat16" if any(m.weight.dtype == torch.bfloat16 for m in bases) else "float32"


def coarsen(model: PreTrainedModel, kept: str) -> None:
    """Gives a plain model the weights that adapters had under them which were trained on a base kept so."""
    if kept == NF4:
        quantise(model, torch.float32)
    for name, linear in list(backbone_of(model).named_modules()):
        if not isinstance(linear, nn.Linear) or kept == "float32":
            continue
        if type(linear) is nn.Linear:
            linear.weight.data = linear.weight.detach().to(torch.bfloat16).to(linear.weight.dtype)
            continue
        dense = nn.Linear(linear.in_features, linear.out_features, bias=False, device="meta")
        dense.weight, dense.bias = nn.Parameter(dense_weight(linear)), linear.bias
        parent, _, leaf = name.rpartition(".")
        setattr(backbone_of(model).get_submodule(parent), leaf, dense)


def dense_weight(linear: Any) -> Tensor:
    """[O, I] of a linear map, float32 or wider: its own, or a new tensor where it is kept in less."""
    weight_OI: Tensor = linear.weight.detach()
    state = getattr(linear.weight, "quant_state", None)
    if state is not None:
        from g2rpo_fast.adapters.four_bits import dequantised

        weight_OI = dequantised(linear.weight)
    return weight_OI.to(torch.promote_types(weight_OI.dtype, torch.float32))


def num_weights(parameter: Tensor) -> int:
    """Of a parameter, which may be packed."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else int(state.shape.numel())
