"""A policy loss for verl's registry: clip with dual clip, on verl's own aggregation modes.

    from verl.trainer.ppo.core_algos import register_policy_loss
    register(register_policy_loss)          # then actor_rollout_ref.actor.policy_loss.loss_mode=g2rpo

Same values and gradients as verl's `vanilla`. Written against verl of 2026 (functions of seven arguments that
return the loss and a dict of metrics).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from g2rpo_kernels import Clip, Edges, Objective, policy_loss_of_logps
from torch import Tensor

PolicyLossFn = Callable[..., tuple[Tensor, dict[str, Any]]]


def register(register_policy_loss: Callable[[str], Callable[[PolicyLossFn], PolicyLossFn]]) -> None:
    register_policy_loss("g2rpo")(compute_policy_loss)


def compute_policy_loss(
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str = "token-mean",
    config: Any = None,
    rollout_is_weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, Any]]:
    """All tensors [B, L]; `config` is verl's ActorConfig."""
    mask = response_mask.to(torch.promote_types(log_prob.dtype, torch.float32))
    weight = token_weights(mask, loss_agg_mode, config.global_batch_info)
    policy_weight = weight if rollout_is_weights is None else weight * rollout_is_weights
    scaled = torch.where(mask != 0, policy_weight * advantages, 0.0).flatten()
    edges = Edges(
        a_pos_T=scaled.clamp(min=0),
        a_neg_T=scaled.clamp(max=0),
        weight_T=weight.flatten(),
        old_logp_T=old_log_prob.flatten(),
    )
    low, high = config.clip_ratio_low, config.clip_ratio_high
    clip = Clip(
        low=config.clip_ratio if low is None else low,
        high=config.clip_ratio if high is None else high,
        dual=config.get("clip_ratio_c", 3.0),
    )
    out = policy_loss_of_logps(log_prob.flatten(), edges, Objective(surrogate=clip))
    means = {name: float(total / count.clamp(min=1)) for name, (total, count) in out.stats.items()}
    metrics = {"actor/pg_clipfrac": means["clipped"], "actor/ppo_kl": means["approx_kl"]}
    return out.loss, metrics


def token_weights(mask: Tensor, mode: str, batch: Mapping[str, Any]) -> Tensor:
    """[B, L] weights that make a weighted sum of verl's `agg_loss`, from a floating mask."""
    ranks = batch.get("dp_size", 1)
    count = mask.sum(1, keepdim=True)
    tokens = batch.get("batch_num_tokens") or mask.sum().clamp(min=1)
    sequences = batch.get("global_batch_size") or (count > 0).sum().clamp(min=1)
    length = batch.get("loss_scale_factor") or mask.shape[1]
    divisors = {
        "token-mean": tokens,
        "token-sum": 1,
        "seq-mean-token-sum": sequences,
        "seq-mean-token-sum-norm": sequences * length,
        "seq-mean-token-mean": sequences * (count + 1e-8),
    }
    if mode not in divisors:
        raise ValueError(f"loss_agg_mode: wanted one of {tuple(divisors)}, got {mode!r}")
    return mask * ranks / divisors[mode]
