"""Which terms the kernels' one-launch loss computes, and with which settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from g2rpo_fast.objective.config import ObjectiveConfig
from g2rpo_fast.pieces import Term

if TYPE_CHECKING:
    from g2rpo_kernels import Objective

ONCE = ("surrogate", "kl_coef", "entropy_coef")
"""Settings of which the kernels have one: two terms of a kind do not fit."""


def fused_objective(terms: Sequence[Term], config: ObjectiveConfig) -> Objective | None:
    """What computes the sum of `terms` with importance weights of tokens; those of rows are in the edges.

    None: a term that no kernel knows, no surrogate or several, or settings that contradict each other.
    """
    from g2rpo_kernels import Objective

    settings: dict[str, Any] = {}
    for term in terms:
        own = term.kernel()
        if own is None or any(
            name in settings and (name in ONCE or settings[name] != own[name]) for name in own
        ):
            return None
        settings |= own
    return None if "surrogate" not in settings else Objective(**settings, **_token_importance(config))


def _token_importance(config: ObjectiveConfig) -> dict[str, Any]:
    low, cap = config.importance_bounds
    weighs_tokens = config.importance_level == "token"
    return {
        "importance_cap": cap if weighs_tokens else None,
        "importance_low": low if weighs_tokens else 0.0,
        "importance_mask": config.importance_masks,
    }
