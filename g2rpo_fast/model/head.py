"""The LM head as data, for losses and samplers that never call it: logits = cap(hidden W^T + b).

Dimension key: D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel

LOGIT_SCALES = ("logits_scaling", "logit_scale", "lm_head_multiplier")
"""Configuration fields (Granite, Cohere, Falcon-H1) by which some models scale their logits."""

SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
"""Those (Gemma, RecurrentGemma, xLSTM) by which some models cap them."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """logits = cap(hidden @ weight^T + bias), cap(x) = softcap * tanh(x / softcap)."""

    weight_VD: Tensor
    """The parameter itself: the embedding's where they are tied."""
    bias_V: Tensor | None
    softcap: float | None


def head_of(model: PreTrainedModel) -> Head:
    """The model's head. The tensors are the live parameters, not copies.

    Raises ValueError for a head that is more than one linear map, or whose logits are scaled afterwards.
    """
    config = model.config.get_text_config()
    for name in LOGIT_SCALES:
        scale = getattr(config, name, None)
        if scale not in (None, 1):
            raise ValueError(f"{config.model_type}: wanted {name} = 1 (no scaling of logits), got {scale}")
    linear = model.get_output_embeddings()
    if not isinstance(linear, nn.Linear):
        got = type(linear).__name__
        raise ValueError(f"{config.model_type}: wanted a plain linear LM head without adapters, got {got}")
    return Head(
        weight_VD=linear.weight,
        bias_V=linear.bias,
        softcap=next((cap for name in SOFTCAPS if (cap := getattr(config, name, None))), None),
    )
