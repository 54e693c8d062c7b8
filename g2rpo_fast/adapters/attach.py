"""Adapters onto a model, and off it for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from g2rpo_fast.adapters import AdapterConfig, check_adapters
from g2rpo_fast.adapters.base import halve, linear_maps, quantise
from g2rpo_fast.adapters.forward import use_own_forwards
from g2rpo_fast.adapters.merged import NAME, adapter_layers


def add_adapters(
    model: PreTrainedModel,
    config: AdapterConfig,
    *,
    base: str,
    seed: int,
    compute_dtype: torch.dtype = torch.float32,
) -> None:
    """Gives the linear maps of a model adapters and freezes everything else; the model computes what it did.

    Args:
        base: where the model's weights are, for those who load the adapters.
        seed: of the random A; B is zero.
        compute_dtype: of the products that it will run with.

    Raises:
        ValueError: PEFT is not installed, or finds no module of these names that it can adapt, or adapts
            stacks of experts, which nothing here merges; the base is to be kept in less than it is multiplied
            in.
    """
    check_adapters(config)
    kept = _kept_in(config, compute_dtype)
    from peft import LoraConfig, inject_adapter_in_model

    asked = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # pyright: ignore[reportArgumentType] (it is divided by the rank)
        target_modules=list(config.targets) or _all_targets(model),
        use_dora=config.kind == "dora",
        base_model_name_or_path=base,
        task_type="CAUSAL_LM",
    )
    model.requires_grad_(False)
    if kept == "nf4":
        quantise(model, compute_dtype)
    maps = linear_maps(model)
    devices = [model.device] if model.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            with _in_4_bits(model, kept == "nf4"):
                inject_adapter_in_model(asked, model, adapter_name=NAME)
    except ValueError as error:
        reason = " ".join(str(error).split())
        wanted = ", ".join(config.targets) or "linear maps besides the LM head"
        raise ValueError(
            f"adapter.targets: wanted {wanted} in a {model.config.model_type}, got: {reason}"
        ) from error
    stacks = [name for name, layer in adapter_layers(model).items() if type(layer).__name__ == "ParamWrapper"]
    if stacks:
        raise ValueError(
            f"adapter.targets: wanted linear maps of a {model.config.model_type}, got what PEFT takes for "
            f"experts' stacked weights ({stacks[0]}); name others, such as q_proj and v_proj"
        )
    for layer in adapter_layers(model).values():  # autocast does, once for the map and its adapter
        layer.cast_input_dtype_enabled = False
    if kept == "bfloat16":  # now that the adapters, which take the dtype of what they adapt, are float32
        halve(maps)
    use_own_forwards(model)


def _all_targets(model: PreTrainedModel) -> str | list[str]:
    """Every linear map but the LM head. With experts by name: PEFT would take theirs and the routers too."""
    if not any(parameter.ndim == 3 and ".experts." in name for name, parameter in model.named_parameters()):
        return "all-linear"
    return sorted({name.rpartition(".")[2] for name in linear_maps(model)})


def _kept_in(config: AdapterConfig, compute_dtype: torch.dtype) -> str:
    half = compute_dtype == torch.bfloat16
    if config.base == "auto":
        return "bfloat16" if half else "float32"
    if config.base == "bfloat16" and not half:
        raise ValueError(
            "adapter.base: wanted float32 or nf4 where products are float32 (model.precision), got bfloat16"
        )
    return config.base


@contextmanager
def _in_4_bits(model: PreTrainedModel, four: bool) -> Iterator[None]:
    """PEFT looks at this flag of transformers' for which layers to put on 4-bit maps."""
    if not four:
        yield
        return
    flags: Any = model
    flags.is_loaded_in_4bit = True
    try:
        yield
    finally:
        del flags.is_loaded_in_4bit


@contextmanager
def without_adapters(model: PreTrainedModel) -> Iterator[None]:
    """Within it the model is the one that the adapters were given to. Take no gradient there."""
    layers = list(adapter_layers(model).values())
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
