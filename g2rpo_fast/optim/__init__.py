"""The optimisers, learning-rate schedules, clipping, and the guard against bad gradients.

Here is what a configuration needs; the modules, which import PyTorch, are imported when they are used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from g2rpo_fast.bounds import Ge, Gt, InfinityToo, Le, Lt, check_fields
from g2rpo_fast.extras import require

if TYPE_CHECKING:
    import torch

    from g2rpo_fast.optim.in_backward import InBackward

Kind = Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit", "muon"]


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimiser and its step. Defaults: the released G2RPO-A recipe."""

    kind: Kind = "adamw"
    """adamw (arXiv 1711.05101), both moments in float32; adamw_8bit keeps them in 8 bits (arXiv 2110.02861),
    by bitsandbytes; paged_...: on CUDA, they may move to the host's memory where the GPU's is short; muon:
    the matrices inside the model by Muon (arXiv 2502.16982), all else by adamw."""
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
    """On matrices only."""
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.95
    """Muon: decay of its one moment."""
    max_grad_norm: Annotated[float, Gt(0), InfinityToo] = 1.0
    """Gradients are scaled down to this global norm; inf = never."""
    in_backward: bool = False
    """Each layer takes its step as soon as the backward pass has left it, and its gradients are freed: never
    those of all weights at once where an optimiser step is one micro-batch. Wants max_grad_norm = inf."""
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
        if self.in_backward and self.max_grad_norm != math.inf:
            raise ValueError(
                "optim.max_grad_norm: wanted inf with optim.in_backward (the norm of all gradients is known "
                f"after the last layer's step), got {self.max_grad_norm:g}"
            )

    def made_by(self, weights: str) -> str:
        """What kind of state the optimiser of such weights has, as checkpoints name it."""
        return f"{self.kind}, {weights} weights"

    def warmup(self, total_steps: int) -> int:
        """Steps of warm-up in a run of `total_steps`."""
        share = 0 < self.warmup_steps < 1
        return math.ceil(self.warmup_steps * total_steps - 1e-9) if share else int(self.warmup_steps)


def check_optimizer(config: OptimConfig, device: str) -> None:
    """ValueError where `config.kind` is none for the device, or takes what is not installed."""
    if config.kind.startswith("paged") and device == "cpu":
        raise ValueError(
            f"optim.kind: wanted adamw, adamw_8bit or muon on a CPU, whose memory is the host's, got "
            f"{config.kind}"
        )
    if config.kind not in ("adamw", "muon"):
        require("bitsandbytes", f"optim.kind: wanted {config.kind}", extra="optim")


def make_optimizer(model: torch.nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Of `config.kind` over the trainable parameters; decay on matrices only. Its `param_groups` hold the
    model's own parameters, bfloat16 ones too, which it rounds at random (`optim/rounded.py`)."""
    from g2rpo_fast.optim.make import optimizer_of

    return optimizer_of(model, config)


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


def apply_gradients(
    optimizer: torch.optim.Optimizer, *, lr: float, max_grad_norm: float, begun: InBackward | None = None
) -> float:
    """Clips, steps unless the gradient is not finite, and clears the gradients.

    Args:
        begun: layers that took their step in the backward pass, which those that are left follow.

    Returns the global gradient norm before clipping; when it is not finite nothing was changed, but for
    layers of `begun` whose own gradients were.
    """
    from torch.nn.utils import clip_grad_norm_

    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = float(clip_grad_norm_(parameters, max_grad_norm)) if parameters else 0.0
    if begun is not None:
        norm = math.hypot(norm, begun.norm)
    if math.isfinite(norm):
        set_rate(optimizer, lr)
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """The learning rate of its next step."""
    for group in optimizer.param_groups:
        group["lr"] = lr
