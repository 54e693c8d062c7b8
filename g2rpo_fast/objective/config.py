"""The section `objective`: what all terms of the loss share. Which terms there are is `terms`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from g2rpo_fast.bounds import Ge, InfinityToo, Le, check_fields

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
    """The old policy, the engine's mismatch, and what a token weighs. Defaults: GRPO."""

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

    replay_routing: bool = False
    """Mixtures of experts: the update goes through the experts that rollout.record_routing recorded, weighted
    by its own routers (R3), where there is a record; where rows share a position, that of the first."""

    def __post_init__(self) -> None:
        check_fields(self, "objective")
        if self.old_logp == "rollout" and self.importance != "none":
            raise ValueError(
                "objective.importance: wanted 'none' with old_logp='rollout' (its ratios are taken to the "
                f"engine already), got {self.importance!r}"
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
