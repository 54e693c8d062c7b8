"""A loss by its numbers, for tests that write it out by hand beside the terms that compute it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from g2rpo_kernels import Objective

from g2rpo_fast.config import Config, config_from_dict
from g2rpo_fast.objective import ObjectiveConfig, fused_objective
from g2rpo_fast.pieces import Term


@dataclass(frozen=True, kw_only=True)
class Loss:
    """One surrogate, a KL term and an entropy bonus where their coefficients are not 0."""

    surrogate: str = "clip"
    clip_low: float = 0.2
    clip_high: float = 0.2
    ratio: str = "token"
    kl_coef: float = 0.0
    entropy_coef: float = 0.0
    old_logp: str = "trainer"
    importance: str = "none"
    importance_low: float | None = None
    importance_cap: float | None = None
    aggregation: str = "sequence_mean"
    constant_length: int | None = None

    @property
    def whole(self) -> Config:
        return config_from_dict({"objective": asdict(self)})

    @property
    def config(self) -> ObjectiveConfig:
        return self.whole.objective

    @property
    def terms(self) -> tuple[Term, ...]:
        return self.whole.terms

    @property
    def kernel(self) -> Objective:
        """What the kernels compute."""
        objective = fused_objective(self.terms, self.config)
        assert objective is not None
        return objective

    @property
    def importance_bounds(self) -> tuple[float, float]:
        return self.config.importance_bounds

    @property
    def importance_level(self) -> str:
        return self.config.importance_level

    @property
    def learnt(self) -> dict[str, Any]:
        """As arguments of `Learner`."""
        return {"objective": self.config, "terms": self.terms}
