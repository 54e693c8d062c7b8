"""What a reward function is."""

from __future__ import annotations

from collections.abc import Callable

from g2rpo_fast.types import Rollout

RewardFunction = Callable[[str, str, Rollout], float]
"""(response text, reference answer, everything known of the rollout) -> a finite number."""
