"""May weights be written into a live vLLM model where they lie? And on a CPU: make it so that they may.

A recorded copy plan is exact when the memory that a loader filled is the memory that the kernels read.
Two things break that: what vLLM does to weights after loading (quantisation, expert layouts, absorbed
projections), and on a CPU the packed copy from which it computes every linear layer. The first is refused,
by a list of what is known to be harmless; the second can be undone (`unpack_linears`), at the price of
slower decoding: 1.6 to 1.9 times in float32, 1.2 times in bfloat16. `remove_unpacked` leads back.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from g2rpo_fast.rollout.vllm.layerwise import reload_functions

UNCHANGED = {"UnquantizedLinearMethod", "UnquantizedEmbeddingMethod", "NoneType"}
"""`quant_method` classes that leave weights as loaded (on CUDA; for a CPU see `packed_linears`)."""

_UNPACKED = "_g2rpo_unpacked"
"""Attribute of layers whose weight vLLM had removed and `unpack_linears` put back."""

SCALES_ONLY = {"Attention", "EncoderOnlyAttention", "CrossAttention", "ChunkedLocalAttention"}
"""Layers whose work after loading concerns the scales of a quantised cache, not weights."""


def refusal(model: nn.Module, quantization: str | None) -> str | None:
    """Why weights must not be written in place; None = they may."""
    if quantization is not None:
        return f"quantization {quantization!r} stores other values than were loaded"
    for name, layer in model.named_modules():
        method = type(getattr(layer, "quant_method", None)).__name__
        processes = callable(getattr(layer, "process_weights_after_loading", None))
        if method not in UNCHANGED:
            return f"{name}: {method} may change weights after loading"
        if processes and type(layer).__name__ not in SCALES_ONLY:
            return f"{name}: {type(layer).__name__} may derive other tensors from weights"
        if "sinks" in layer._parameters:
            return f"{name}: attention keeps sinks in a precision of its own"
    packed = packed_linears(model)
    if packed:
        return f"vLLM's CPU kernels read packed copies of {len(packed)} weights; rung 'plan' unpacks them"
    return None


def packed_linears(model: nn.Module) -> list[nn.Module]:
    """Layers that a CPU computes otherwise than by `F.linear` of their own weight."""
    return [m for m in model.modules() if vars(m).get("cpu_linear", F.linear) is not F.linear]


@torch.no_grad()
def unpack_linears(model: nn.Module, model_config: Any) -> int:
    """CPU: gives every linear layer its weight back, not initialised, and computes with it. How many.

    The next update must fill them all. Reads the loaders that vLLM keeps for its layerwise reload.
    ValueError when vLLM has compiled the model: the graph holds the packed copies.
    """
    packed = packed_linears(model)
    if packed and not model_config.enforce_eager:
        raise ValueError("rung 'plan' on a CPU: wanted vLLM with enforce_eager=True, got a compiled model")
    functions = reload_functions()
    for layer in packed:
        weight = layer._parameters["weight"]
        if weight is None or not weight.numel():
            meta = functions.info(layer).restore_metadata[0]["weight"]
            fresh = functions.restore_references(functions.materialize(meta), layer)
            fresh.weight_loader = functions.original_loader(fresh)
            layer.register_parameter("weight", fresh)
            weight = fresh
            vars(layer)[_UNPACKED] = True
        bias = getattr(layer, "bias", None)
        if bias is not None:
            bias.data = bias.to(weight.dtype)  # one of the packed kernels keeps it in float32
        layer.cpu_linear = F.linear  # pyright: ignore[reportArgumentType]
    return len(packed)


def remove_unpacked(model: nn.Module) -> None:
    """As vLLM left the layers that `unpack_linears` changed; the next layerwise reload packs them again."""
    for layer in model.modules():
        if vars(layer).pop(_UNPACKED, False):
            weight = layer.get_parameter("weight")
            layer.register_parameter("weight", nn.Parameter(weight.new_empty(0), requires_grad=False))
