"""Estimators of KL(policy || reference), with d = logp - ref_logp: k1 = d, k2 = d^2 / 2, k3 = exp(-d) + d - 1
(http://joschu.net/blog/kl-approx.html).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from g2rpo_kernels.policy_loss.surrogates import MAX_LOG_RATIO

KlName = Literal["k1", "k2", "k3"]


def _k1(log_ratio: Tensor) -> Tensor:
    return log_ratio


def _k2(log_ratio: Tensor) -> Tensor:
    return log_ratio.square() / 2


def _k3(log_ratio: Tensor) -> Tensor:
    bounded = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    # exp(-d) - 1 as expm1: near d = 0 the difference would keep few digits.
    return torch.expm1(-bounded) + bounded


KLS: dict[KlName, Callable[[Tensor], Tensor]] = {"k1": _k1, "k2": _k2, "k3": _k3}
