"""A padded batch as edges: those of masked positions dropped or of weight 0, normalisation in the weights.

Engine mismatch comes as importance ratios of the old policy to the engine. They multiply the surrogate's
weights. vespo's are part of its ratio instead (their logs, clamped as in TRL, summed over all positions):
given as the engine's log-probabilities; or without old ones, so that the ratio is known beforehand, made into
the weights of `reinforce`.

Dimension key: B sequences, L positions of each, T kept positions (the edges).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from g2rpo_kernels.checks import shows_nan
from g2rpo_kernels.padded.batch import PaddedBatch
from g2rpo_kernels.padded.options import GRPOOptions, objective_of, vespo_of
from g2rpo_kernels.padded.values import refuse_values, usable_importance
from g2rpo_kernels.padded.weights import kl_weights, policy_weights
from g2rpo_kernels.policy_loss.records import Edges, Objective, PolicyLoss
from g2rpo_kernels.policy_loss.reference import loss_of
from g2rpo_kernels.policy_loss.surrogates import MAX_LOG_RATIO, MIN_VESPO_RATIO, Reinforce


class Problem(NamedTuple):
    """The loss as a function of the kept positions' log-probabilities and entropies."""

    edges: Edges
    objective: Objective
    counted_T: Tensor
    """Bool: inside the mask."""
    advantage_T: Tensor
    entropy_weight_T: Tensor | None
    """Of the entropy bonus, coefficient included, where the edges' weights are the KL's; else None."""


def taking_part(mask_BL: Tensor, options: GRPOOptions) -> Tensor:
    """[B, L] bool: positions that have a part in the loss."""
    part_BL = mask_BL != 0
    if options.spreads_over_padding:
        part_BL = part_BL.any(1, keepdim=True).expand_as(part_BL)
    return part_BL


def problem_of(batch: PaddedBatch, options: GRPOOptions, kept_T: Tensor | None = None) -> Problem:
    """The problem on positions `kept_T` of the flattened batch: those that count, maybe others; None = all.

    Raises ValueError for a value that no loss can be made of, where values can be seen (`refuse_values`).
    Elsewhere the coefficient of its position is NaN: an old or reference log-probability that is not finite
    would be taken for none, or be bounded.
    """
    given, counted_BL = batch, batch.mask_BL != 0
    dtype = torch.promote_types(batch.advantage_BL.dtype, torch.float32)
    mask_BL = counted_BL.to(dtype)
    if batch.importance_BL is not None:
        batch = batch._replace(importance_BL=usable_importance(batch.importance_BL))
    objective, rollout_logp_BL = _objective(batch, options), None
    if options.loss_type == "vespo":
        batch, rollout_logp_BL = _fold_importance(batch, mask_BL, options)
    advantage_BL = batch.advantage_BL.to(dtype).expand_as(mask_BL)
    kl_weight_BL = kl_weights(mask_BL, options, batch.num_items)
    policy_weight_BL = policy_weights(kl_weight_BL, mask_BL, batch.importance_BL, options)
    objective, weight_BL, bonus_BL = _with_entropy(objective, options.entropy_coef, mask_BL, kl_weight_BL)

    def kept(value_BL: Tensor) -> Tensor:
        return value_BL.reshape(-1) if kept_T is None else value_BL.reshape(-1)[kept_T]

    def kept_if(value_BL: Tensor | None) -> Tensor | None:
        return None if value_BL is None else kept(value_BL)

    counted_T, advantage_T, kl_weight_T = kept(counted_BL), kept(advantage_BL), kept(kl_weight_BL)
    policy_weight_T = kl_weight_T if policy_weight_BL is kl_weight_BL else kept(policy_weight_BL)
    weight_T = kl_weight_T if weight_BL is kl_weight_BL else kept(weight_BL)
    logps = kept_if(batch.old_logp_BL), kept_if(batch.ref_logp_BL), kept_if(rollout_logp_BL)
    scaled_T = policy_weight_T * advantage_T
    for logp_T in logps:
        scaled_T = scaled_T if logp_T is None else scaled_T + (logp_T - logp_T)
    scaled_T = torch.where(counted_T if options.by_sequence else kl_weight_T != 0, scaled_T, 0.0)
    if shows_nan(scaled_T):
        spread = options.loss_type == "luspo" and options.luspo_over_padding
        refuse_values(given, torch.ones_like(counted_BL) if spread else counted_BL)
    edges = Edges(scaled_T.clamp(min=0), scaled_T.clamp(max=0), weight_T, *logps)
    if objective.ratio != "token":
        edges = _with_members(edges, kept_T, mask_BL.shape, counted_T, scaled_T, kl_weight_T)
    return Problem(edges, objective, counted_T, advantage_T, kept_if(bonus_BL))


def _with_members(
    edges: Edges,
    kept_T: Tensor | None,
    shape: tuple[int, ...],
    counted_T: Tensor,
    scaled_T: Tensor,
    weight_T: Tensor,
) -> Edges:
    """Each position is the one member of its edge, of its own sequence; of weight 0 if not counted."""
    num_edges, device = scaled_T.shape[0], scaled_T.device
    kept_T = torch.arange(num_edges, device=device) if kept_T is None else kept_T
    return edges._replace(
        member_ptr_T1=torch.arange(num_edges + 1, device=device),
        member_row_M=kept_T // shape[1],
        member_advantage_M=torch.where(counted_T, scaled_T / weight_T, 0.0),
        member_weight_M=torch.where(counted_T, weight_T, 0.0),
        num_rows=shape[0],
    )


def problem_loss(logp_T: Tensor, entropy_T: Tensor, problem: Problem) -> PolicyLoss:
    """The loss as plain PyTorch on the kept positions' vectors; differentiable with respect to both."""
    out = loss_of(logp_T, entropy_T, problem.edges, problem.objective)
    if problem.entropy_weight_T is None:
        return out
    weight_T = problem.entropy_weight_T.to(entropy_T)
    bonus = (weight_T * torch.where(weight_T != 0, entropy_T, 0.0)).sum()
    return out._replace(loss=out.loss - bonus)


def _objective(batch: PaddedBatch, options: GRPOOptions) -> Objective:
    objective, is_vespo = objective_of(options), options.loss_type == "vespo"
    if is_vespo and batch.importance_BL is not None:
        objective = replace(objective, importance_cap=math.exp(MAX_LOG_RATIO))
    if batch.ref_logp_BL is None:
        # Against itself the policy has neither a divergence nor a gradient of it.
        objective = replace(objective, kl_coef=0.0)
    if is_vespo and batch.old_logp_BL is None:
        objective = replace(objective, surrogate=Reinforce(), ratio="token", importance_cap=None)
    return objective


def _with_entropy(
    objective: Objective, coef: float, mask_BL: Tensor, kl_weight_BL: Tensor
) -> tuple[Objective, Tensor, Tensor | None]:
    """(objective, edges' weights, weights of a bonus apart). The bonus is a mean over all counted tokens."""
    if not coef:
        return objective, kl_weight_BL, None
    mean_BL = mask_BL / mask_BL.sum().clamp(min=1)
    if objective.kl_coef:
        return objective, kl_weight_BL, coef * mean_BL
    return replace(objective, entropy_coef=coef), mean_BL, None


def _fold_importance(
    batch: PaddedBatch, mask_BL: Tensor, options: GRPOOptions
) -> tuple[PaddedBatch, Tensor | None]:
    """For vespo: the batch without importance ratios, and the engine's log-probabilities that hold them."""
    log_w_B1 = mask_BL.new_zeros(len(mask_BL), 1)
    if batch.importance_BL is not None:
        importance_BL = batch.importance_BL.to(mask_BL.dtype)
        importance_BL = torch.where(importance_BL < torch.inf, importance_BL, torch.nan)
        if importance_BL.shape == mask_BL.shape:
            importance_BL = importance_BL.masked_fill((mask_BL == 0) & importance_BL.isnan(), 1.0)
        log_importance_BL = importance_BL.log()
        log_w_B1 = log_importance_BL.clamp(math.log(MIN_VESPO_RATIO), MAX_LOG_RATIO).sum(1, keepdim=True)
    if batch.old_logp_BL is not None:
        # Spread evenly: the sum over a sequence is all that counts, and it includes masked positions.
        engine_BL = batch.old_logp_BL - log_w_B1 / mask_BL.sum(1, keepdim=True).clamp(min=1)
        return batch._replace(importance_BL=None), None if batch.importance_BL is None else engine_BL
    plus_B1, minus_B1 = vespo_of(options).phi(log_w_B1.clamp(max=MAX_LOG_RATIO).exp())
    return batch._replace(importance_BL=torch.where(batch.advantage_BL >= 0, plus_B1, minus_B1)), None
