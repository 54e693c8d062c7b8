"""The LM head as data, for losses and samplers that never call it: logits = cap(scale hidden W^T + b).

Dimension key: D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

LOGIT_SCALES = {
    "logits_scaling": -1,
    "logit_scale": 1,
    "lm_head_multiplier": 1,
    "logits_mup_width_multiplier": -1,
}
"""Configuration fields (Granite, Cohere, Falcon-H1, Inkling) by which some models multiply their logits, or
divide them."""

SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
"""Those (Gemma, RecurrentGemma, xLSTM) by which some models cap them."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """logits = cap(scale * hidden @ weight^T + bias), cap(x) = softcap * tanh(x / softcap)."""

    weight_VD: Tensor
    """The parameter itself: the embedding's where they are tied."""
    bias_V: Tensor | None
    scale: float
    softcap: float | None


def head_of(model: PreTrainedModel) -> Head:
    """The model's head. The tensors are the live parameters, not copies.

    Its weights are of the last map: what comes before in some heads is the encoder's (`encoder_of`).

    Raises ValueError for a head whose last map is no plain linear one.
    """
    config = model.config.get_text_config()
    scale = scale_of(config)
    linear = model.get_output_embeddings()
    if not isinstance(linear, nn.Linear):
        got = type(linear).__name__
        raise ValueError(f"{config.model_type}: wanted a plain linear LM head without adapters, got {got}")
    if scale != 1 and linear.bias is not None:
        raise ValueError(f"{config.model_type}: wanted scaled logits without a bias, got an LM head with one")
    return Head(
        weight_VD=linear.weight,
        bias_V=linear.bias,
        scale=scale,
        softcap=next((cap for name in SOFTCAPS if (cap := getattr(config, name, None))), None),
    )


def scale_of(config: PreTrainedConfig) -> float:
    """What logits are multiplied by; ValueError for a scale that is no number above 0."""
    scale = 1.0
    for name, power in LOGIT_SCALES.items():
        value = getattr(config, name, None)
        if value is None:
            continue
        if not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise ValueError(f"{config.model_type}: wanted {name} above 0, got {value!r}")
        scale *= value**power
    return scale
