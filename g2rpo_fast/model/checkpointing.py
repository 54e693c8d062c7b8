"""Layers that keep their input for the backward pass, and compute the rest again in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer


@dataclass(frozen=True)
class Checkpointed:
    """A layer's forward, where there is something to differentiate computed again in the backward pass."""

    forward: Callable[..., Any]
    offload: bool

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        with save_on_cpu(pin_memory=True) if self.offload else nullcontext():
            return checkpoint(self.forward, *args, use_reentrant=False, **kwargs)


def checkpoint_layers(
    model: PreTrainedModel, *, num_layers: int | None = None, offload: bool = False
) -> None:
    """Let the layers that transformers would checkpoint in training mode do so in any mode.

    Training mode would switch their noise on. Instances only, as in `instances.py`.

    Args:
        num_layers: of how many, from the first on: what these keep is kept longest. None = of all.
        offload: what is kept of a layer waits in the host's pinned memory.

    Raises ValueError where the model has no such layers, or fewer.
    """
    if not model.supports_gradient_checkpointing:
        raise ValueError(
            f"{model.config.model_type}: wanted a model that supports model.gradient_checkpointing, "
            f"got {type(model).__name__}"
        )
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    if num_layers is not None and num_layers > len(layers):
        raise ValueError(
            f"model.checkpointed_layers: wanted at most {len(layers)}, the model's layers, got {num_layers}"
        )
    for layer in layers[:num_layers]:
        layer.forward = Checkpointed(layer.forward, offload)


@contextmanager
def keeping_all(model: torch.nn.Module) -> Iterator[None]:
    """Within it no layer is checkpointed."""
    forwards = [(m, m.forward) for m in model.modules() if isinstance(m.forward, Checkpointed)]
    for layer, checkpointed in forwards:
        layer.forward = checkpointed.forward
    try:
        yield
    finally:
        for layer, checkpointed in forwards:
            layer.forward = checkpointed
