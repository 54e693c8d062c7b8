"""Weights by the names that a model's published checkpoints have, where vLLM knows no others.

transformers holds the experts of a layer as one tensor, and may call modules otherwise than the checkpoint
does. vLLM's loaders take such stacks by transformers' names (Qwen's, OLMoE's), which saves thousands of small
tensors; but not where modules of other names are in between (Mixtral's, Phi's, Granite's).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion


def renames_around_experts(model: PreTrainedModel) -> bool:
    """Whether it has stacks of experts, and other parameters go by another name in its checkpoints."""
    parameters = dict(model.named_parameters())
    stacks = {name for name, parameter in parameters.items() if is_stack(name, parameter)}
    if not stacks:
        return False
    others = (name for name in parameters if name not in stacks and "lora_" not in name)
    nothing = torch.empty(0, device="meta")
    return any(list(revert_weight_conversion(model, {name: nothing})) != [name] for name in others)


def is_stack(name: str, parameter: Tensor) -> bool:
    """Of the matrices of a layer's experts."""
    return parameter.ndim == 3 and ".experts." in name


@torch.no_grad()
def in_checkpoint_names(
    model: PreTrainedModel, named: Iterable[tuple[str, Tensor]]
) -> Iterator[tuple[str, Tensor]]:
    """The same tensors as a checkpoint of `model` has them, one after another: stacks come apart."""
    for name, tensor in named:
        yield from revert_weight_conversion(model, {name: tensor}).items()
