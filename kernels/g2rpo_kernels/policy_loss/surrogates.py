"""Every surrogate and KL estimator, each written once.

The objective to be maximised is a_pos * plus(r) + a_neg * minus(r): `plus` is what a positive advantage
multiplies, `minus` what a negative one does, r = exp(logp - old_logp).

    clip (arXiv 1707.06347; dual clip 1912.09729)
        plus = min(r, 1 + hi)    minus = max(r, 1 - lo), with dual clip min(., dual)
    cispo (arXiv 2506.13585)
        plus = minus = sg(clip(r, max(1 - lo, 0), 1 + hi)) * logp
    sapo (arXiv 2511.20347)
        plus, minus = 4 / tau * sigmoid(tau * (r - 1)), tau by the advantage's sign
    reinforce
        plus = minus = logp
    vespo (arXiv 2602.10693), on sequence ratios `product`
        plus, minus = sg(phi(r)) * logp,  phi(w) = w^k exp(rate (1 - w)), k and rate by the advantage's sign

sg = stop-gradient. KL estimators of KL(policy || reference), d = logp - ref_logp: k1 = d, k2 = d^2 / 2,
k3 = exp(-d) + d - 1 (http://joschu.net/blog/kl-approx.html).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from g2rpo_kernels.policy_loss.records import KlName, Objective, SurrogateName

MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped to +-20 before exp: no inf, hence no inf * 0 = NaN; gradients vanish beyond."""

MIN_VESPO_RATIO = 1e-8
"""Smallest ratio that phi sees, as in TRL."""


class Surrogate(NamedTuple):
    plus: Tensor
    minus: Tensor
    clipped_plus: Tensor | None = None
    """Where the bound acts, for the metric; None = the surrogate has no bound."""
    clipped_minus: Tensor | None = None


def ratio_of(log_ratio: Tensor) -> Tensor:
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def _clip(ratio: Tensor, logp: Tensor, objective: Objective) -> Surrogate:
    low, high = 1 - objective.clip_low, 1 + objective.clip_high
    # clamp, not minimum: a ratio exactly on the bound keeps its gradient.
    minus, clipped_minus = ratio.clamp(min=low), ratio < low
    if objective.dual_clip is not None:
        minus, clipped_minus = (
            minus.clamp(max=objective.dual_clip),
            clipped_minus | (ratio > objective.dual_clip),
        )
    return Surrogate(ratio.clamp(max=high), minus, ratio > high, clipped_minus)


def _cispo(ratio: Tensor, logp: Tensor, objective: Objective) -> Surrogate:
    low, high = max(1 - objective.clip_low, 0.0), 1 + objective.clip_high
    value = ratio.detach().clamp(low, high) * logp
    clipped = (ratio < low) | (ratio > high)
    return Surrogate(value, value, clipped, clipped)


def _sapo(ratio: Tensor, logp: Tensor, objective: Objective) -> Surrogate:
    plus, minus = (
        4 / tau * torch.sigmoid(tau * (ratio - 1)) for tau in (objective.sapo_tau_pos, objective.sapo_tau_neg)
    )
    return Surrogate(plus, minus)


def _reinforce(ratio: Tensor, logp: Tensor, objective: Objective) -> Surrogate:
    return Surrogate(logp, logp)


def vespo_weight(ratio: Tensor, k: float, rate: float) -> Tensor:
    """phi: 1 at a ratio of 1, falling to 0 on both sides of its maximum at k / rate."""
    ratio = ratio.clamp(min=MIN_VESPO_RATIO)
    return torch.exp(k * ratio.log() + rate * (1 - ratio))


def _vespo(ratio: Tensor, logp: Tensor, objective: Objective) -> Surrogate:
    ratio = ratio.detach()
    plus = vespo_weight(ratio, objective.vespo_k_pos, objective.vespo_rate_pos)
    minus = vespo_weight(ratio, objective.vespo_k_neg, objective.vespo_rate_neg)
    return Surrogate(plus * logp, minus * logp)


SURROGATES: dict[SurrogateName, Callable[[Tensor, Tensor, Objective], Surrogate]] = {
    "clip": _clip,
    "cispo": _cispo,
    "sapo": _sapo,
    "reinforce": _reinforce,
    "vespo": _vespo,
}


def _k1(log_ratio: Tensor) -> Tensor:
    return log_ratio


def _k2(log_ratio: Tensor) -> Tensor:
    return log_ratio.square() / 2


def _k3(log_ratio: Tensor) -> Tensor:
    bounded = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    # exp(-d) - 1 as expm1: near d = 0 the difference would keep few digits.
    return torch.expm1(-bounded) + bounded


KLS: dict[KlName, Callable[[Tensor], Tensor]] = {"k1": _k1, "k2": _k2, "k3": _k3}
