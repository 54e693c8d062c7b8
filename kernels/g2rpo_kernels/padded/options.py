"""Options of a GRPO loss on a padded batch, by the names that TRL and Liger-Kernel give them.

    loss_type                    surrogate   weight of a token (n_i tokens of sequence i are counted)
    grpo                         clip        1 / (B n_i)
    sapo                         sapo        1 / (B n_i)
    bnpo                         clip        1 / (counted tokens of this batch)
    dr_grpo                      clip        1 / (B max_completion_length)
    dapo                         clip        1 / (counted tokens of all batches and ranks / ranks)
    cispo, vespo                 themselves  as dapo
    luspo                        clip        1 / B

Sources: grpo arXiv 2402.03300, dr_grpo 2503.20783, dapo 2503.14476, cispo 2506.13585, sapo 2511.20347,
luspo 2602.05261, vespo 2602.10693, sequence ratios (GSPO) 2507.18071, delta 2505.07291,
use_bias_correction_kl 2512.02556.

Dimension key: B sequences, L positions of each.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from g2rpo_kernels.policy_loss.records import Objective
from g2rpo_kernels.policy_loss.surrogates import Cispo, Clip, Sapo, Surrogate, Vespo

LossType = Literal["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo"]
Level = Literal["token", "sequence"]


@dataclass(frozen=True, kw_only=True)
class GRPOOptions:
    """Which loss. Defaults are TRL's."""

    loss_type: LossType = "dapo"
    importance_sampling_level: Level = "token"
    """`sequence` (GSPO): one ratio per sequence, not with cispo, sapo and vespo (which has its own)."""
    beta: float = 0.0
    """Weight of the KL penalty (k3); at least 0."""
    epsilon_low: float = 0.2
    """Ratios are clipped from below at 1 - epsilon_low; in [0, 1) (cispo, sapo and vespo do not use it)."""
    epsilon_high: float = 0.2
    """Ratios are clipped from above at 1 + epsilon_high, at least 0 (cispo: at epsilon_high, above 0)."""
    delta: float | None = None
    """Bound of the ratio on the side that clipping leaves open (negative advantages), at least 1."""
    max_completion_length: int | None = None
    """dr_grpo divides by it."""
    sapo_temperature_pos: float = 1.0
    sapo_temperature_neg: float = 1.05
    vespo_k_pos: float = 2.0
    vespo_lambda_pos: float = 3.0
    vespo_k_neg: float = 3.0
    vespo_lambda_neg: float = 2.0
    use_bias_correction_kl: bool = False
    """Multiply the KL estimate by the ratio."""
    entropy_coef: float = 0.0
    """Weight of the mean entropy over the counted tokens, which is subtracted from the loss."""
    luspo_over_padding: bool = False
    """Liger-Kernel's luspo: wherever its terms have one value per position, their mean over all L positions
    times n_i, padding included. False: the sum over the counted ones (TRL since 1.16)."""

    def __post_init__(self) -> None:
        for name, wanted in (
            ("loss_type", get_args(LossType)),
            ("importance_sampling_level", get_args(Level)),
        ):
            if getattr(self, name) not in wanted:
                raise ValueError(f"{name}: wanted one of {wanted}, got {getattr(self, name)!r}")
        if self.by_sequence and SURROGATES[self.loss_type] is not _clip:
            raise ValueError(
                f"importance_sampling_level: wanted 'token' with loss_type={self.loss_type!r}, got 'sequence'"
            )
        self._check_numbers()
        if self.delta is not None and not self.delta >= 1:
            raise ValueError(f"delta: wanted >= 1 or None, got {self.delta}")
        length = self.max_completion_length
        if self.loss_type == "dr_grpo" and not (length is not None and length > 0):
            raise ValueError(f"max_completion_length: wanted > 0 with loss_type='dr_grpo', got {length}")
        if self.spreads_over_padding and self.by_sequence and self.use_bias_correction_kl:
            raise ValueError(
                "luspo_over_padding: wanted False with importance_sampling_level='sequence', beta and"
                " use_bias_correction_kl, got True"
            )
        objective_of(self)

    def _check_numbers(self) -> None:
        """Those that this loss type uses."""
        if not math.isfinite(self.entropy_coef):
            raise ValueError(f"entropy_coef: wanted a finite number, got {self.entropy_coef}")
        if not 0 <= self.beta < math.inf:
            raise ValueError(f"beta: wanted >= 0 and finite, got {self.beta}")
        surrogate = SURROGATES[self.loss_type]
        if surrogate is _clip and not 0 <= self.epsilon_low < 1:
            raise ValueError(
                f"epsilon_low: wanted in [0, 1), as the clip is 1 - epsilon_low, got {self.epsilon_low}"
            )
        if surrogate is _clip and not self.epsilon_high >= 0:
            raise ValueError(f"epsilon_high: wanted >= 0, got {self.epsilon_high}")
        if surrogate is _cispo and not self.epsilon_high > 0:
            raise ValueError(
                f"epsilon_high: wanted > 0 with loss_type='cispo', whose cap it is, got {self.epsilon_high}"
            )
        for name in POSITIVE.get(self.loss_type, ()):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}: wanted > 0 and finite, got {getattr(self, name)}")

    @property
    def by_sequence(self) -> bool:
        return self.importance_sampling_level == "sequence"

    @property
    def spreads_over_padding(self) -> bool:
        """Whether positions outside the mask have a part in the loss."""
        luspo = self.loss_type == "luspo" and self.luspo_over_padding
        return luspo and (not self.by_sequence or self.beta != 0)


def _clip(options: GRPOOptions) -> Clip:
    """Two-sided clipping takes min(r, delta) where clipping takes r: the upper bound is min(1 + high, delta)
    for A > 0 and max(1 + high, delta) for A < 0.
    """
    high, delta = options.epsilon_high, options.delta
    if delta is None:
        return Clip(low=options.epsilon_low, high=high)
    return Clip(low=options.epsilon_low, high=min(high, delta - 1), dual=max(1 + high, delta))


def _cispo(options: GRPOOptions) -> Cispo:
    return Cispo(low=1.0, high=options.epsilon_high - 1)


def _sapo(options: GRPOOptions) -> Sapo:
    return Sapo(tau_pos=options.sapo_temperature_pos, tau_neg=options.sapo_temperature_neg)


def vespo_of(options: GRPOOptions) -> Vespo:
    return Vespo(
        k_pos=options.vespo_k_pos,
        rate_pos=options.vespo_lambda_pos,
        k_neg=options.vespo_k_neg,
        rate_neg=options.vespo_lambda_neg,
    )


SURROGATES: dict[LossType, Callable[[GRPOOptions], Surrogate]] = {
    "grpo": _clip,
    "bnpo": _clip,
    "dr_grpo": _clip,
    "dapo": _clip,
    "cispo": _cispo,
    "sapo": _sapo,
    "luspo": _clip,
    "vespo": vespo_of,
}


POSITIVE: dict[LossType, tuple[str, ...]] = {
    "sapo": ("sapo_temperature_pos", "sapo_temperature_neg"),
    "vespo": ("vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg"),
}
"""Settings that a loss type uses and that have to be above 0."""


def objective_of(options: GRPOOptions) -> Objective:
    """The kernels' objective; raises ValueError naming the setting that is out of range."""
    return Objective(
        surrogate=SURROGATES[options.loss_type](options),
        ratio="product" if options.loss_type == "vespo" else options.importance_sampling_level,
        kl_coef=options.beta,
        kl_times_ratio=options.use_bias_correction_kl,
    )
