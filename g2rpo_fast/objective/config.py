"""The command line's section `objective`: which loss, from which advantages, normalised how.

loss = sum over trained tokens of weight * [-surrogate(ratio, advantage) + kl_coef kl - entropy_coef H]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from g2rpo_fast.bounds import Ge, Gt, InfinityToo, Le, check_fields

AggregationName = Literal["sequence_mean", "token_mean", "sequence_sum", "constant"]
ImportanceName = Literal[
    "none",
    "token_truncate",
    "token_mask",
    "sequence_truncate",
    "sequence_mask",
    "geometric_truncate",
    "geometric_mask",
]
IMPORTANCE_BOUNDS = {"token": (0.0, 2.0), "sequence": (0.0, 2.0), "geometric": (0.99, 1.01)}
"""Level of importance weights -> (low, cap) where the configuration names none."""


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Defaults: GRPO with token ratios, clipped symmetrically, without KL or entropy term."""

    surrogate: Literal["clip", "cispo", "sapo", "reinforce"] = "clip"
    """What is maximised: clip (PPO, GRPO), cispo (clipped factor times log-probability), sapo (soft gate),
    reinforce (log-probability)."""
    clip_low: Annotated[float, Ge(0), InfinityToo] = 0.2
    """Ratios are clipped from below at 1 - clip_low (clip, cispo); 1 or more = never."""
    clip_high: Annotated[float, Gt(-1), InfinityToo] = 0.2
    """Ratios are clipped from above at 1 + clip_high (clip, cispo); inf = never. Below 0: only for cispo."""
    dual_clip: Annotated[float, Gt(1), InfinityToo] | None = None
    """Most that a ratio counts where the advantage is negative (clip); above 1."""
    sapo_tau_pos: Annotated[float, Gt(0)] = 1.0
    """Temperature of sapo's gate for positive advantages."""
    sapo_tau_neg: Annotated[float, Gt(0)] = 1.05
    """Temperature of sapo's gate for negative advantages."""
    ratio: Literal["token", "sequence"] = "token"
    """Ratio per token, or one per sequence: exp of the mean log-ratio (GSPO)."""
    kl: Literal["k1", "k2", "k3"] = "k3"
    """Estimator of the divergence from the reference policy."""
    kl_coef: Annotated[float, Ge(0)] = 0.0
    """Weight of that divergence; 0 = no reference policy."""
    entropy_coef: Annotated[float, Ge(0)] = 0.0
    """Weight of the entropy bonus."""
    old_logp: Literal["trainer", "rollout"] = "trainer"
    """The policy that ratios are taken to: trainer = the weights that the update starts from; rollout = what
    the engine reported when it sampled (no importance weights then). On-policy where it sampled nothing."""
    importance: ImportanceName = "none"
    """Weights trainer / engine on the surrogate, for an engine of other numerics or older weights. Levels:
    token; sequence = their product, which grows with length; geometric = their geometric mean, which doesn't.
    Out of bounds a weight becomes the bound (truncate) or 0 (mask). All but token cost one pass more."""
    importance_low: Annotated[float, Ge(0), Le(1)] | None = None
    """Smallest weight, in [0, 1]. None = 0; geometric: 0.99."""
    importance_cap: Annotated[float, Ge(1), InfinityToo] | None = None
    """Largest weight, 1 or more; inf = any. None = 2; geometric: 1.01."""
    aggregation: AggregationName = "sequence_mean"
    """Mean of each sequence, then of all (GRPO); mean over all tokens (DAPO); sum of each sequence, then the
    mean of all (LUSPO); that by a constant (Dr. GRPO)."""
    constant_length: Annotated[int, Ge(1)] | None = None
    """Tokens per sequence that `constant` divides by; unset = the rollout's maximum."""
    advantage_scale: Literal["group", "none", "batch"] = "group"
    """Divide advantages by the standard deviation of the group, of the batch, or not (Dr. GRPO)."""
    advantage_aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = "sum_then_normalize"
    """Sum the reward channels, then normalise; or normalise each, then sum (GDPO)."""
    advantage_eps: Annotated[float, Gt(0)] = 1e-4
    """Added to that standard deviation."""

    def __post_init__(self) -> None:
        check_fields(self, "objective")
        if self.surrogate != "cispo" and self.clip_high < 0:
            raise ValueError(
                f"objective.clip_high: wanted at least 0 with surrogate={self.surrogate!r}, "
                f"got {self.clip_high}"
            )
        if self.advantage_aggregation == "normalize_then_sum" and self.advantage_scale != "group":
            raise ValueError(
                "objective.advantage_scale: wanted 'group' with advantage_aggregation='normalize_then_sum',"
                f" got {self.advantage_scale!r}"
            )
        if self.old_logp == "rollout" and self.importance != "none":
            raise ValueError(
                "objective.importance: wanted 'none' with old_logp='rollout' (its ratios are taken to the "
                f"engine already), got {self.importance!r}"
            )
        if self.old_logp == "rollout" and self.surrogate == "reinforce":
            raise ValueError(
                "objective.old_logp: wanted 'trainer' with surrogate='reinforce' (it has no ratio), "
                "got 'rollout'"
            )

    @property
    def importance_level(self) -> str:
        """none, token, sequence or geometric."""
        return self.importance.partition("_")[0]

    @property
    def importance_masks(self) -> bool:
        return self.importance.endswith("_mask")

    @property
    def importance_bounds(self) -> tuple[float, float]:
        """(low, cap); the level's own where not configured."""
        low, cap = IMPORTANCE_BOUNDS.get(self.importance_level, (0.0, 2.0))
        return (
            low if self.importance_low is None else self.importance_low,
            cap if self.importance_cap is None else self.importance_cap,
        )
