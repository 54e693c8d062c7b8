"""Adapters onto a model, and off it for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from g2rpo_fast.adapters import AdapterConfig, require_peft
from g2rpo_fast.adapters.merged import adapter_layers


def add_adapters(model: PreTrainedModel, config: AdapterConfig, *, base: str, seed: int) -> None:
    """Gives the linear maps of a model adapters and freezes everything else; the model computes what it did.

    Args:
        base: where the model's weights are, for those who load the adapters.
        seed: of the random A; B is zero.

    Raises:
        ValueError: PEFT is not installed, or finds no module of these names that it can adapt.
    """
    require_peft(f"adapter.kind: wanted {config.kind}")
    from peft import LoraConfig

    asked = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # pyright: ignore[reportArgumentType] (it is divided by the rank)
        target_modules=list(config.targets) or "all-linear",
        use_dora=config.kind == "dora",
        base_model_name_or_path=base,
        task_type="CAUSAL_LM",
    )
    model.requires_grad_(False)
    devices = [model.device] if model.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            model.add_adapter(asked)
    except ValueError as error:
        reason = " ".join(str(error).split())
        wanted = ", ".join(config.targets) or "linear maps besides the LM head"
        raise ValueError(
            f"adapter.targets: wanted {wanted} in a {model.config.model_type}, got: {reason}"
        ) from error
    asked.base_model_name_or_path = base  # which transformers has set to the model's own name


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
