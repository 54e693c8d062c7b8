"""What a model with adapters computes, as weights of the plain model: for engines, exports, other programs.

Merged weights are made when they are asked for, in the weights' dtype; the model stays as it is.

Dimension key: O outputs, I inputs of a linear map.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from g2rpo_fast.adapters.base import BASE, dense_weight

NAME = "default"
"""That PEFT knows the adapters by."""


def has_adapters(model: nn.Module) -> bool:
    return bool(getattr(model, "peft_config", None))  # which PEFT sets


def adapter_config(model: nn.Module) -> Any:
    """PEFT's description of a model's adapters."""
    configs: Any = model.peft_config
    return configs[NAME]


def adapter_layers(model: nn.Module) -> dict[str, Any]:
    """The adapted maps (`peft.tuners.lora.LoraLayer`) by name; empty where there are no adapters."""
    if not has_adapters(model):
        return {}
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


@torch.no_grad()
def merged_weight(layer: Any) -> Tensor:
    """[O, I] of one adapted map, a new tensor, float32 or wider."""
    base = layer.get_base_layer()
    weight_OI = dense_weight(base)
    if weight_OI.data_ptr() == base.weight.data_ptr():
        weight_OI = weight_OI.clone()
    variant = layer.lora_variant.get(NAME)
    if variant is not None:
        return variant.merge_safe(layer, NAME, weight_OI)
    return weight_OI.add_(layer.get_delta_weight(NAME))


def whole(
    model: nn.Module, named: Iterable[tuple[str, Tensor]], *, merge: bool = True
) -> Iterator[tuple[str, Tensor]]:
    """Parameters or tensors of `model` under the plain model's names, adapters merged into what they adapt
    (without `merge`: left out), and what is kept in fewer bits as float32.

    Each such weight is new, and made when it is its turn.
    """
    layers = adapter_layers(model)
    if not layers:
        yield from named
        return
    modules = dict(model.named_modules())
    for name, tensor in named:
        owner, leaf = _split(name, modules)
        plain = owner.removesuffix(BASE)
        packing = leaf.startswith("weight.")  # scales of 4-bit weights
        if packing or (plain not in layers and any(above in layers for above in _above(owner))):
            continue
        if merge and leaf == "weight" and plain in layers:
            tensor = merged_weight(layers[plain])
        elif leaf == "weight" and isinstance(modules[owner], nn.Linear):
            tensor = dense_weight(modules[owner])
        yield f"{plain}.{leaf}", tensor


def whole_parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """`named_parameters` of the plain model that computes what `model` does; those themselves without
    adapters."""
    return whole(model, model.named_parameters())


def base_parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The same of the model that the adapters were given to."""
    return whole(model, model.named_parameters(), merge=False)


def _split(name: str, modules: dict[str, nn.Module]) -> tuple[str, str]:
    """The module that holds a tensor of this name, and what it calls it."""
    owner = max((above for above in _above(name) if above in modules), key=len, default="")
    return owner, name.removeprefix(f"{owner}.")


def _above(name: str) -> list[str]:
    """The modules that something of this name is in."""
    parts = name.split(".")
    return [".".join(parts[:place]) for place in range(1, len(parts))]


@dataclass(frozen=True)
class WholeLinear:
    """A linear map as a weight and a bias."""

    weight: Tensor
    """[O, I]"""
    bias: Tensor | None

    @property
    def out_features(self) -> int:
        return len(self.weight)


def plain_linear(module: nn.Module) -> nn.Linear | None:
    """The `nn.Linear` that a module is, or that it adapts; None for every other module."""
    base = getattr(module, "base_layer", None)
    if base is None:
        return module if type(module) is nn.Linear else None
    return base if type(base) is nn.Linear else None


def whole_linear(module: nn.Module) -> WholeLinear:
    """What a module of which `plain_linear` knows computes: its own parameters, or merged ones."""
    linear = plain_linear(module)
    assert linear is not None
    return WholeLinear(linear.weight if linear is module else merged_weight(module), linear.bias)
