"""What trainer and engines must agree on about a causal language model: its backbone, and how far it goes."""

from __future__ import annotations

from typing import Any

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
