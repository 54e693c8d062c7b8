"""LoRA as tensors for a program that computes it beside the base: y = W x + B (A x).

Dimension key: O outputs, I inputs of a linear map, R rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from g2rpo_fast.adapters.base import dense_weight
from g2rpo_fast.adapters.merged import NAME, adapter_config, adapter_layers

PREFIX = "base_model.model."
"""Before the names of tensors in PEFT's files."""
TRIAL = 0.1
"""Of a weight's standard deviation: what trial adapters add to it."""


@torch.no_grad()
def lora_tensors(model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """A [R, I] and alpha / rank * B [O, R] of every adapted map under PEFT's names: new tensors of `dtype`
    on the CPU. The factor is in B before it is rounded, so that of the config below is 1."""
    tensors: dict[str, Tensor] = {}
    for name, layer in adapter_layers(model).items():
        both = {"A": layer.lora_A[NAME].weight, "B": layer.lora_B[NAME].weight * layer.scaling[NAME]}
        for letter, weight in both.items():
            tensors[f"{PREFIX}{name}.lora_{letter}.weight"] = weight.detach().to(dtype).cpu().contiguous()
    return tensors


def lora_config(model: nn.Module) -> dict[str, Any]:
    """What readers of PEFT's format need of adapter_config.json for `lora_tensors`."""
    rank: int = adapter_config(model).r
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": adapted_names(model),
        "bias": "none",
    }


def adapted_names(model: nn.Module) -> list[str]:
    """The last parts of the names of the adapted maps, such as q_proj."""
    return sorted({name.rpartition(".")[2] for name in adapter_layers(model)})


@contextmanager
def trial_adapters(model: nn.Module, *, seed: int = 0) -> Iterator[bool]:
    """Within it adapters that add nothing yet (every B is zero) add random numbers; whether they do.

    Shows whether another program computes with them, which zeros would not tell. In place, and undone.
    """
    layers = adapter_layers(model)
    weights = [layer.lora_B[NAME].weight.data for layer in layers.values()]
    silent = not any(bool(weight_OR.any()) for weight_OR in weights)
    try:
        for place, layer in enumerate(layers.values() if silent else ()):
            _fill(layer, torch.Generator().manual_seed(seed + place))
        yield silent
    finally:
        for weight_OR in weights if silent else ():
            weight_OR.zero_()


@torch.no_grad()
def _fill(layer: Any, generator: torch.Generator) -> None:
    """B such that the weight's entries change by `TRIAL` of their standard deviation."""
    a_RI, b_OR = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight
    wanted = TRIAL * float(dense_weight(layer.get_base_layer()).std())
    size = float(a_RI.square().mean().sqrt()) * len(a_RI) ** 0.5 * layer.scaling[NAME]
    noise_OR = torch.randn(b_OR.shape, generator=generator)
    b_OR.copy_(noise_OR.to(b_OR) * (wanted / size))
