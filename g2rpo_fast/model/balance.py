"""The loss that keeps the experts of a mixture evenly used: transformers' `load_balancing_loss_func`.

    E * sum over experts of (share of the choices that fell on it) * (mean probability that its router gave)

Both are over all layers and all positions of the rows. A position of a packed tree counts as often as rows go
through it, so that a tree and its rows side by side have one loss and one gradient: that of the probabilities
alone. The formula is that of Switch Transformer (arXiv 2101.03961, equations 4 to 6).

Dimension key: S packed positions, E experts, K experts of one token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from g2rpo_fast.model.config import ModelConfig
from g2rpo_fast.types import Longs, TreePlan

COEFFICIENTS = ("router_aux_loss_coef", "aux_loss_coef")
"""Where transformers' models keep the factor of this loss."""


@dataclass(frozen=True, kw_only=True)
class Balance:
    """That a model is trained with this loss."""

    coefficient: float
    experts_per_token: int
    asked: bool
    """By the model's own configuration, with its coefficient."""


def balance_of(model: PreTrainedModel, config: ModelConfig) -> Balance | None:
    """None where neither `model.router_aux` nor the model's configuration asks for it, or by 0."""
    given, text = config.router_aux, model.config.get_text_config()
    coefficient = given
    if given is None:
        coefficient = own_coefficient(model) if _collects(model) else 0.0
    if not coefficient:
        return None
    chosen = getattr(model, "num_experts_per_tok", None) or getattr(text, "num_experts_per_tok", None) or 0
    return Balance(coefficient=coefficient, experts_per_token=int(chosen), asked=given is None)


def own_coefficient(model: PreTrainedModel) -> float:
    """What transformers multiplies the loss with; 1 where it does not say: `check_balance` compares."""
    found = [getattr(model, name, None) for name in COEFFICIENTS]
    return next((float(value) for value in found if value is not None), 1.0)


def routing_keywords(model: PreTrainedModel, *, routed: bool) -> dict[str, Any]:
    """What a forward of the backbone is told, so that it collects its routers' logits, or does not."""
    return {"output_router_logits": routed} if routed or _collects(model) else {}


def router_logits_of(output: Any) -> list[Tensor]:
    """[positions, E] of each layer with experts, from what a backbone returns; [] where it gives none."""
    return [logits.flatten(0, -2) for logits in output.get("router_logits") or ()]


def _collects(model: PreTrainedModel) -> bool:
    """Whether its configuration asks for the logits, and with them for the loss."""
    configs = (model.config, model.config.get_text_config())
    return any(bool(getattr(config, "output_router_logits", False)) for config in configs)


def multiplicity(plan: TreePlan) -> Longs:
    """[S] how many rows of the plan go through each position."""
    ends_S1 = np.concatenate([[0], np.cumsum(np.bincount(plan.last_B, minlength=len(plan.token_S)))])
    return ends_S1[plan.end_S] - ends_S1[:-1]


def balance_loss(logits: Sequence[Tensor], weight_S: Tensor, experts_per_token: int) -> Tensor:
    """0-dim, float32 or wider, differentiable in the logits.

    Args:
        logits: of each layer's router, [S, E].
        weight_S: how often each position counts.
    """
    dtype = torch.promote_types(logits[0].dtype, torch.float32)
    weight_S = weight_S.to(dtype)
    experts = logits[0].shape[-1]
    chosen_E, probability_E = weight_S.new_zeros(experts), weight_S.new_zeros(experts)
    for logits_SE in logits:
        probability_SE = logits_SE.to(dtype).softmax(-1)
        index_SK = probability_SE.detach().topk(experts_per_token, dim=-1).indices
        chosen_E = chosen_E.index_add(0, index_SK.flatten(), weight_S.repeat_interleave(experts_per_token))
        probability_E = probability_E + weight_S @ probability_SE
    total = len(logits) * weight_S.sum()
    return experts * ((chosen_E / total) * (probability_E / total)).sum()
