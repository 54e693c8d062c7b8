"""The clipped ratio of PPO and GRPO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from g2rpo_fast.bounds import Ge, Gt, InfinityToo
from g2rpo_fast.objective.terms.surrogate import RatioName, Surrogate


@dataclass(frozen=True, kw_only=True)
class Clip(Surrogate):
    """-A min(r, 1 + high) where A > 0, -A max(r, 1 - low) where A < 0; with `dual` at most that ratio there.

    PPO (arXiv 1707.06347), GRPO (2402.03300); two bounds: DAPO (2503.14476); dual clip: 1912.09729; the ratio
    of a sequence: GSPO (2507.18071). Evidence: code (TRL, verl).
    """

    use = "clip"
    record = "Clip"
    low: Annotated[float, Ge(0), InfinityToo] = 0.2
    """Ratios are clipped from below at 1 - low; 1 or more = never."""
    high: Annotated[float, Ge(0), InfinityToo] = 0.2
    """Ratios are clipped from above at 1 + high; inf = never."""
    dual: Annotated[float, Gt(1), InfinityToo] | None = None
    """Most that a ratio counts where the advantage is negative."""
    ratio: RatioName = "token"
    """Per token; one per sequence, exp of the mean log-ratio, or of its sum (product, TRL's RLOO); or one per
    unit of a sequence, exp of its mean (see `units`)."""
