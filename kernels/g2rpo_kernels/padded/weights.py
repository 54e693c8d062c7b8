"""Weights of the tokens of a padded batch: every normalisation of `GRPOOptions.loss_type` as data.

Dimension key: B sequences, L positions of each.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from g2rpo_kernels.checks import readable
from g2rpo_kernels.padded.batch import NumItems
from g2rpo_kernels.padded.options import GRPOOptions, LossType


def _sequence_mean(mask_BL: Tensor, options: GRPOOptions, num_items: NumItems) -> Tensor:
    return mask_BL / (mask_BL.sum(1, keepdim=True).clamp(min=1) * len(mask_BL))


def _token_mean(mask_BL: Tensor, options: GRPOOptions, num_items: NumItems) -> Tensor:
    return mask_BL / mask_BL.sum().clamp(min=1)


def _constant(mask_BL: Tensor, options: GRPOOptions, num_items: NumItems) -> Tensor:
    assert options.max_completion_length is not None
    return mask_BL / (len(mask_BL) * options.max_completion_length)


def _global_token_mean(mask_BL: Tensor, options: GRPOOptions, num_items: NumItems) -> Tensor:
    distributed = dist.is_available() and dist.is_initialized()
    if num_items is None:
        total = mask_BL.sum()
        if distributed:
            dist.all_reduce(total)
    else:
        total = _number(num_items, mask_BL)
    ranks = dist.get_world_size() if distributed else 1
    if isinstance(total, Tensor):
        weight_BL = mask_BL / (total / ranks).clamp(min=1)
    else:
        weight_BL = mask_BL / max(total / ranks, 1.0)
    return weight_BL if num_items is None else weight_BL.masked_fill(mask_BL == 0, 0.0)


def _number(num_items: Tensor | float, like: Tensor) -> Tensor | float:
    """On the host if it is there. NaN unless it is positive, which it need not be if nothing is counted."""
    if torch.compiler.is_compiling() or (isinstance(num_items, Tensor) and not readable(num_items)):
        total = torch.as_tensor(num_items, dtype=like.dtype, device=like.device)
        return total.masked_fill(~(total > 0), torch.nan)
    number = float(num_items)
    return number if number > 0 else math.nan


def _row_sum(mask_BL: Tensor, options: GRPOOptions, num_items: NumItems) -> Tensor:
    if not options.luspo_over_padding:
        return mask_BL / len(mask_BL)
    spread_BL = torch.ones_like(mask_BL) if options.spreads_over_padding else mask_BL
    return spread_BL * mask_BL.sum(1, keepdim=True) / mask_BL.numel()


WEIGHTS: dict[LossType, Callable[[Tensor, GRPOOptions, NumItems], Tensor]] = {
    "grpo": _sequence_mean,
    "bnpo": _token_mean,
    "dr_grpo": _constant,
    "dapo": _global_token_mean,
    "cispo": _global_token_mean,
    "sapo": _sequence_mean,
    "luspo": _row_sum,
    "vespo": _global_token_mean,
}


def kl_weights(mask_BL: Tensor, options: GRPOOptions, num_items: NumItems) -> Tensor:
    """[B, L] weight of each position's KL, from a floating mask of 0 and 1. Positive where it is 1."""
    return WEIGHTS[options.loss_type](mask_BL, options, num_items)


def policy_weights(
    kl_weight_BL: Tensor, mask_BL: Tensor, importance_BL: Tensor | None, options: GRPOOptions
) -> Tensor:
    """[B, L] weight of each position's surrogate: the KL's, times the importance ratios where given."""
    if options.loss_type == "luspo" and options.luspo_over_padding and options.by_sequence:
        # One term per sequence times the mean over its positions, put on the tokens that its ratio is of.
        mean_B1 = 1.0 if importance_BL is None else importance_BL.mean(1, keepdim=True)
        return (mask_BL * mean_B1).masked_fill(mask_BL == 0, 0.0) / len(mask_BL)
    if importance_BL is None:
        return kl_weight_BL
    return torch.where(kl_weight_BL != 0, kl_weight_BL * importance_BL, 0.0)
