"""The problem of the linear-loss comparison, and the loss that all its sides compute.

Dimension key: T rows (one edge each), D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SEQUENCE = 32
"""Tokens of a sequence; an advantage each."""
Loss = Callable[["Problem"], Tensor]


@dataclass(frozen=True)
class Problem:
    hidden_TD: Tensor
    head_VD: Tensor
    target_T: Tensor
    old_logp_T: Tensor
    advantage_T: Tensor


def make_problem(
    rows: int, width: int, vocabulary: int, silent_percent: int = 0, device: str = "cpu"
) -> Problem:
    """float32 on the CPU, bfloat16 on CUDA; old log-probabilities near the new ones: few rows clip.

    `silent_percent` of the sequences have an advantage of 0, as in groups whose rewards are all equal.
    """
    generator = torch.Generator(device).manual_seed(0)
    options: dict[str, Any] = {"device": device, "generator": generator}
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    hidden_TD = torch.randn(rows, width, dtype=dtype, **options)
    head_VD = torch.randn(vocabulary, width, dtype=dtype, **options) / width**0.5
    target_T = torch.randint(vocabulary, (rows,), **options)
    exact = []
    for start in range(0, rows, 64):
        z = (hidden_TD[start : start + 64] @ head_VD.T).float()
        exact.append(z.log_softmax(-1).gather(1, target_T[start : start + 64, None])[:, 0])
    noise = 0.1 * torch.randn(rows, **options)
    advantage = torch.randn(-(-rows // SEQUENCE), **options)
    advantage[: len(advantage) * silent_percent // 100] = 0
    advantage = advantage.repeat_interleave(SEQUENCE)[:rows]
    return Problem(
        hidden_TD.requires_grad_(), head_VD.requires_grad_(), target_T, torch.cat(exact) + noise, advantage
    )


def clipped_loss(logp_T: Tensor, old_logp_T: Tensor, advantage_T: Tensor) -> Tensor:
    """The mean clipped surrogate."""
    ratio_T = (logp_T - old_logp_T).exp()
    return -torch.minimum(ratio_T * advantage_T, ratio_T.clamp(0.8, 1.2) * advantage_T).mean()


def eager_loss(
    hidden_TD: Tensor, head_VD: Tensor, target_T: Tensor, old_logp_T: Tensor, advantage_T: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """(loss, the metrics that ours gives; returned, because a compiler leaves out what is not)."""
    every_TV = (hidden_TD @ head_VD.T).float().log_softmax(-1)
    logp_T = every_TV.gather(1, target_T[:, None])[:, 0]
    with torch.no_grad():
        ratio_T = (logp_T - old_logp_T).exp()
        clipped_T = ((ratio_T > 1.2) & (advantage_T > 0)) | ((ratio_T < 0.8) & (advantage_T < 0))
        entropy_T = -(every_TV.exp() * every_TV).sum(-1)
        metrics = entropy_T.mean(), clipped_T.float().mean(), ratio_T.mean(), (logp_T - old_logp_T).mean()
    return clipped_loss(logp_T, old_logp_T, advantage_T), metrics
