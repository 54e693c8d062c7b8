"""The command line's section `objective`: which loss, from which advantages, normalised how.

loss = sum over trained tokens of weight * [-surrogate(ratio, advantage) + kl_coef kl - entropy_coef H]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from g2rpo_kernels import Objective

AggregationName = Literal["sequence_mean", "token_mean", "constant"]


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Defaults: GRPO with token ratios, clipped symmetrically, without KL or entropy term."""

    surrogate: Literal["clip", "cispo", "sapo", "reinforce"] = "clip"
    """What is maximised: clip (PPO, GRPO), cispo (clipped factor times log-probability), sapo (soft gate),
    reinforce (log-probability)."""
    clip_low: float = 0.2
    """Ratios are clipped from below at 1 - clip_low (clip, cispo)."""
    clip_high: float = 0.2
    """Ratios are clipped from above at 1 + clip_high (clip, cispo)."""
    dual_clip: float | None = None
    """Most that a ratio counts where the advantage is negative (clip); above 1."""
    sapo_tau_pos: float = 1.0
    """Temperature of sapo's gate for positive advantages."""
    sapo_tau_neg: float = 1.05
    """Temperature of sapo's gate for negative advantages."""
    ratio: Literal["token", "sequence"] = "token"
    """Ratio per token, or one per sequence: exp of the mean log-ratio (GSPO)."""
    kl: Literal["k1", "k2", "k3"] = "k3"
    """Estimator of the divergence from the reference policy."""
    kl_coef: float = 0.0
    """Weight of that divergence; 0 = no reference policy."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""
    importance_cap: float | None = None
    """Correct for the engine's numerics: truncated importance weights min(policy / engine, this)."""
    aggregation: AggregationName = "sequence_mean"
    """Mean of each sequence, then of all (GRPO); over all tokens (DAPO); by a constant (Dr. GRPO)."""
    constant_length: int | None = None
    """Tokens per sequence that `constant` divides by; unset = the rollout's maximum."""
    advantage_scale: Literal["group", "none", "batch"] = "group"
    """Divide advantages by the standard deviation of the group, of the batch, or not (Dr. GRPO)."""
    advantage_aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = "sum_then_normalize"
    """Sum the reward channels, then normalise; or normalise each, then sum (GDPO)."""
    advantage_eps: float = 1e-4
    """Added to that standard deviation."""

    def __post_init__(self) -> None:
        kernel_objective(self)
        aggregations = get_args(AggregationName)
        if self.aggregation not in aggregations:
            raise ValueError(f"objective.aggregation: wanted one of {aggregations}, got {self.aggregation!r}")
        if self.constant_length is not None and self.constant_length < 1:
            raise ValueError(f"objective.constant_length: wanted >= 1, got {self.constant_length}")
        if not self.advantage_eps > 0:
            raise ValueError(f"objective.advantage_eps: wanted > 0, got {self.advantage_eps}")
        if self.advantage_aggregation == "normalize_then_sum" and self.advantage_scale != "group":
            raise ValueError(
                "objective.advantage_scale: wanted 'group' with advantage_aggregation='normalize_then_sum',"
                f" got {self.advantage_scale!r}"
            )


def kernel_objective(config: ObjectiveConfig) -> Objective:
    """The part that the kernels read. Raises ValueError naming the field that is out of range."""
    return Objective(
        surrogate=config.surrogate,
        clip_low=config.clip_low,
        clip_high=config.clip_high,
        dual_clip=config.dual_clip,
        sapo_tau_pos=config.sapo_tau_pos,
        sapo_tau_neg=config.sapo_tau_neg,
        ratio=config.ratio,
        kl=config.kl,
        kl_coef=config.kl_coef,
        entropy_coef=config.entropy_coef,
        importance_cap=config.importance_cap,
    )
