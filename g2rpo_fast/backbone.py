"""What trainer and engines must agree on about a causal language model: its backbone, what its last linear
map takes, and how far it goes."""

from __future__ import annotations

import copy
from functools import wraps
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

MOVING_ROPE = ("dynamic", "longrope")
"""RoPE types that take other frequencies, for a whole batch, once its longest sequence outgrows a length."""


UNLIMITED = 1 << 30
"""Positions of a model whose configuration names no limit."""


def backbone_of(model: PreTrainedModel) -> PreTrainedModel:
    """The module between token ids and the LM head."""
    decoder: Any = model.get_decoder()  # of ModernBERT, whose head is called `decoder`, the head
    base: Any = model.base_model
    found = decoder if isinstance(decoder, PreTrainedModel) else base
    inner = [module for module in model.children() if isinstance(module, PreTrainedModel)]
    return inner[0] if found is model and len(inner) == 1 else found  # of Llama 4's text model, whole itself


def encoder_of(model: PreTrainedModel) -> nn.Module:
    """Called as the backbone is; its `last_hidden_state` is what the model's last linear map takes.

    The backbone itself, but for heads of several maps (of BERT, RoBERTa, ModernBERT's decoder: a linear map,
    an activation and a norm come before): there what is before the last one follows the backbone.
    """
    before = maps_before_the_last(model)
    return Encoder(backbone_of(model), before) if before else backbone_of(model)


def maps_before_the_last(model: PreTrainedModel) -> list[nn.Module]:
    """The parts of a head with weights before its last linear map, in the order in which a model has them.

    The weights are the live ones. Whether the model calls them so is for who loads it to compare.
    """
    last = model.get_output_embeddings()
    of_last = {id(weight) for weight in last.parameters()} if last is not None else set()
    parts = [child for child in model.children() if not isinstance(child, PreTrainedModel)]
    return [_without(part, last) for part in parts if {id(w) for w in part.parameters()} - of_last]


def _without(part: nn.Module, last: nn.Module | None) -> nn.Module:
    """A part as it would be if the last linear map returned what it takes. Weights are shared."""
    if part is last:
        return nn.Identity()
    if last is None or all(module is not last for module in part.modules()):
        return part
    changed = copy.copy(part)
    vars(changed)["_modules"] = {
        name: None if child is None else _without(child, last) for name, child in part._modules.items()
    }
    return changed


class Encoder(nn.Module):
    """A backbone and what a head does before its last linear map."""

    def __init__(self, backbone: PreTrainedModel, before: list[nn.Module]) -> None:
        super().__init__()
        self.backbone, self.before = backbone, nn.Sequential(*before)
        forward: Any = backbone.forward

        @wraps(forward)
        def encode(*args: Any, **keywords: Any) -> Any:
            output: Any = self.backbone(*args, **keywords)
            output.last_hidden_state = self.before(output.last_hidden_state)
            return output

        self.forward = encode


def num_positions(config: PreTrainedConfig) -> int:
    """Tokens that a sequence may have.

    `max_position_embeddings`; under a RoPE of `MOVING_ROPE` not more than its first frequencies are for:
    beyond that, the keys of a shared prompt would depend on the longest completion.
    """
    text: Any = config.get_text_config()
    most = int(getattr(text, "max_position_embeddings", None) or UNLIMITED)
    originals = [ropes.get("original_max_position_embeddings") for ropes in moving_ropes(config)]
    return min([most, *(int(length) for length in originals if length)])


def check_length(config: PreTrainedConfig, length: int) -> None:
    """ValueError for a sequence that is longer than the model's RoPE has one set of frequencies for."""
    if moving_ropes(config) and length > num_positions(config):
        raise ValueError(
            f"{config.model_type}: wanted sequences of at most {num_positions(config)} tokens (beyond, its "
            f"RoPE takes other frequencies, for shared prompts too), got {length}"
        )


def moving_ropes(config: PreTrainedConfig) -> list[dict[str, Any]]:
    """The RoPE parameters of a type in `MOVING_ROPE`; of all layers, or by layer type."""
    parameters = getattr(config.get_text_config(), "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    return [
        ropes
        for ropes in nested or [parameters]
        if any(kind in str(ropes.get("rope_type")) for kind in MOVING_ROPE)
    ]
