"""AdamW on float32 weights, learning-rate schedules, clipping, and the guard against bad gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from g2rpo_fast.bounds import Ge, Gt, InfinityToo, Le, Lt, check_fields

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimiser and its step. Defaults: the released G2RPO-A recipe."""

    lr: Annotated[float, Gt(0)] = 1e-5
    """Peak learning rate."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """How lr falls from its peak to min_lr_ratio * lr at the last step; constant: it does not."""
    min_lr_ratio: Annotated[float, Ge(0), Le(1)] = 0.1
    """Where the schedule ends, as a share of lr."""
    warmup_steps: Annotated[float, Ge(0)] = 0
    """Steps in which lr rises linearly to its peak. Below 1: that share of run.steps, rounded up."""
    beta1: Annotated[float, Ge(0), Lt(1)] = 0.9
    """AdamW: decay of the first moment."""
    beta2: Annotated[float, Ge(0), Lt(1)] = 0.95
    """AdamW: decay of the second moment."""
    weight_decay: Annotated[float, Ge(0)] = 0.0
    """AdamW: on matrices only."""
    max_grad_norm: Annotated[float, Gt(0), InfinityToo] = 1.0
    """Gradients are scaled down to this global norm; inf = never."""
    updates_per_batch: Annotated[int, Ge(1)] = 1
    """Passes over each rollout batch. 1, with one minibatch: the old log-probabilities are the pass's own."""
    minibatches: Annotated[int, Ge(1)] = 1
    """Optimiser steps per pass: the batch's groups are split into this many."""
    max_bad_steps: Annotated[int, Ge(1)] = 5
    """Updates in a row that may be skipped for a non-finite gradient before the run stops. An update is a
    pass over the batch; it is skipped when all its minibatches are."""

    def __post_init__(self) -> None:
        check_fields(self, "optim")
        if self.warmup_steps > 1 and self.warmup_steps % 1:
            raise ValueError(
                f"optim.warmup_steps: wanted whole steps, or a share below 1, got {self.warmup_steps}"
            )

    def warmup(self, total_steps: int) -> int:
        """Steps of warm-up in a run of `total_steps`."""
        share = 0 < self.warmup_steps < 1
        return math.ceil(self.warmup_steps * total_steps - 1e-9) if share else int(self.warmup_steps)


def make_optimizer(model: torch.nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; decay on matrices only."""
    import torch

    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=True)


def learning_rate(config: OptimConfig, step: int, total_steps: int) -> float:
    """The learning rate of 0-based `step`: a pure function, so nothing of it needs saving.

    lr (step + 1) / (warm-up + 1) while warming up, lr at the step after, min_lr_ratio * lr at the last step
    and in any beyond it. A run of one step takes it at lr.
    """
    warmup = config.warmup(total_steps)
    if step < warmup:
        return config.lr * (step + 1) / (warmup + 1)
    if config.schedule == "constant":
        return config.lr
    progress = min((step - warmup) / max(total_steps - 1 - warmup, 1), 1.0)
    shape = {"linear": 1.0 - progress, "cosine": 0.5 * (1.0 + math.cos(math.pi * progress))}[config.schedule]
    return config.lr * (config.min_lr_ratio + (1.0 - config.min_lr_ratio) * shape)


def apply_gradients(optimizer: torch.optim.Optimizer, *, lr: float, max_grad_norm: float) -> float:
    """Clips, steps unless the gradient is not finite, and clears the gradients.

    Returns the global gradient norm before clipping; when it is not finite nothing was changed.
    """
    from torch.nn.utils import clip_grad_norm_

    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = float(clip_grad_norm_(parameters, max_grad_norm)) if parameters else 0.0
    if math.isfinite(norm):
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm
