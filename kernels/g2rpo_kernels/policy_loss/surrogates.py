"""Every surrogate, written once: its settings are the fields of its record, which is called for its values.

The objective to be maximised is a_pos * plus(r) + a_neg * minus(r): `plus` is what a positive advantage
multiplies, `minus` what a negative one does, r = exp(logp - old_logp) of the token, or of its row. sg(x) is x
without a gradient.

To add one: a record here, with an entry in SURROGATES. To have it in the one-launch kernels as well:
`scalars`, and a device function in `triton_surrogates.py`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

RatioName = Literal["token", "sequence", "product"]

MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped to +-20 before exp: no inf, hence no inf * 0 = NaN; gradients vanish beyond."""

MIN_VESPO_RATIO = 1e-8
"""Smallest ratio that phi sees, as in TRL."""


class Values(NamedTuple):
    """A surrogate at some ratios: the shape of these."""

    plus: Tensor
    minus: Tensor
    clipped_plus: Tensor | None = None
    """Where the bound acts, for the metric; None = the surrogate has no bound."""
    clipped_minus: Tensor | None = None


def ratio_of(log_ratio: Tensor) -> Tensor:
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


@dataclass(frozen=True, kw_only=True)
class Surrogate(ABC):
    """What advantages multiply. A subclass is a frozen dataclass of settings, which are numbers or None.

    One of your own needs no entry anywhere: given to `Objective` it works in every op, in PyTorch on vectors.
    Its class stands at the top of a module, where operators find it by name.
    """

    name: ClassVar[str]
    """In messages; among SURROGATES, what `Objective` takes for the record with its defaults."""
    has_bound: ClassVar[bool] = False
    """Whether it says where a bound acts: the metric `clipped`."""
    reads_ratio: ClassVar[bool] = True
    """False: its gradient is the same whatever the old policy was."""
    ratios: ClassVar[tuple[RatioName, ...]] = ("token", "sequence", "product")
    """Those that it is defined for."""

    @abstractmethod
    def __call__(self, ratio: Tensor, logp: Tensor) -> Values:
        """Of ratios > 0 and log-probabilities, of one shape; differentiable in both."""

    def scalars(self) -> tuple[float, ...] | None:
        """At most four numbers for its device function, s0 to s3 there; None = it has none."""
        return None

    def wanted(self, setting: str, wanted: str, holds: bool) -> None:
        """Raise ValueError for a setting that does not hold."""
        if not holds:
            raise ValueError(f"{self.name}.{setting}: wanted {wanted}, got {getattr(self, setting)}")


@dataclass(frozen=True, kw_only=True)
class Clip(Surrogate):
    """plus = min(r, 1 + high), minus = max(r, 1 - low), with dual clip min(., dual).

    PPO (arXiv 1707.06347), GRPO (2402.03300); two bounds: DAPO (2503.14476).
    """

    name = "clip"
    has_bound = True
    low: float = 0.2
    """Ratios are clipped from below at 1 - low; at least 0, and from 1 on never (a ratio is above 0)."""
    high: float = 0.2
    """Ratios are clipped from above at 1 + high; at least 0, inf = never."""
    dual: float | None = None
    """Most that a ratio counts where the advantage is negative (arXiv 1912.09729); above 1."""

    def __post_init__(self) -> None:
        self.wanted("low", ">= 0", self.low >= 0)
        self.wanted("high", ">= 0", self.high >= 0)
        self.wanted("dual", "> 1 or None", self.dual is None or self.dual > 1)

    def __call__(self, ratio: Tensor, logp: Tensor) -> Values:
        low, high = 1 - self.low, 1 + self.high
        # clamp, not minimum: a ratio exactly on the bound keeps its gradient.
        minus, clipped_minus = ratio.clamp(min=low), ratio < low
        if self.dual is not None:
            minus, clipped_minus = minus.clamp(max=self.dual), clipped_minus | (ratio > self.dual)
        return Values(ratio.clamp(max=high), minus, ratio > high, clipped_minus)

    def scalars(self) -> tuple[float, ...]:
        return 1 - self.low, 1 + self.high, math.inf if self.dual is None else self.dual


@dataclass(frozen=True, kw_only=True)
class Cispo(Surrogate):
    """plus = minus = sg(clip(r, max(1 - low, 0), 1 + high)) logp: every token keeps a gradient.

    CISPO (MiniMax-M1, arXiv 2506.13585).
    """

    name = "cispo"
    has_bound = True
    low: float = 0.2
    """The factor is at least 1 - low, and at least 0."""
    high: float = 0.2
    """The factor is at most 1 + high; above -1: below 0 it is a cap below 1."""

    def __post_init__(self) -> None:
        self.wanted("low", ">= 0", self.low >= 0)
        self.wanted("high", "> -1", self.high > -1)

    def __call__(self, ratio: Tensor, logp: Tensor) -> Values:
        low, high = self.scalars()
        value = ratio.detach().clamp(low, high) * logp
        clipped = (ratio < low) | (ratio > high)
        return Values(value, value, clipped, clipped)

    def scalars(self) -> tuple[float, ...]:
        return max(1 - self.low, 0.0), 1 + self.high


@dataclass(frozen=True, kw_only=True)
class Sapo(Surrogate):
    """plus, minus = (4 / tau) sigmoid(tau (r - 1)), tau by the advantage's sign (SAPO, arXiv 2511.20347)."""

    name = "sapo"
    tau_pos: float = 1.0
    """Temperature of the gate for positive advantages; above 0."""
    tau_neg: float = 1.05
    """Temperature of the gate for negative advantages; above 0."""

    def __post_init__(self) -> None:
        self.wanted("tau_pos", "> 0", self.tau_pos > 0)
        self.wanted("tau_neg", "> 0", self.tau_neg > 0)

    def __call__(self, ratio: Tensor, logp: Tensor) -> Values:
        plus, minus = (4 / tau * torch.sigmoid(tau * (ratio - 1)) for tau in (self.tau_pos, self.tau_neg))
        return Values(plus, minus)

    def scalars(self) -> tuple[float, ...]:
        return self.tau_pos, self.tau_neg


@dataclass(frozen=True, kw_only=True)
class Reinforce(Surrogate):
    """plus = minus = logp (Williams 1992): no ratio, hence no old policy."""

    name = "reinforce"
    reads_ratio = False

    def __call__(self, ratio: Tensor, logp: Tensor) -> Values:
        return Values(logp, logp)

    def scalars(self) -> tuple[float, ...]:
        return ()


@dataclass(frozen=True, kw_only=True)
class Vespo(Surrogate):
    """plus, minus = sg(phi(r)) logp, phi(r) = r^k exp(rate (1 - r)), r the product of the row's ratios.

    k and rate by the advantage's sign (VESPO, arXiv 2602.10693). phi is 1 at a ratio of 1, and falls to 0 on
    both sides of its maximum at k / rate.
    """

    name = "vespo"
    ratios = ("product",)
    k_pos: float = 2.0
    """Power of the ratio for positive advantages; above 0, as all four."""
    rate_pos: float = 3.0
    """Rate of decay for positive advantages."""
    k_neg: float = 3.0
    """Power of the ratio for negative advantages."""
    rate_neg: float = 2.0
    """Rate of decay for negative advantages."""

    def __post_init__(self) -> None:
        for setting in ("k_pos", "rate_pos", "k_neg", "rate_neg"):
            self.wanted(setting, "> 0", getattr(self, setting) > 0)

    def __call__(self, ratio: Tensor, logp: Tensor) -> Values:
        plus, minus = self.phi(ratio.detach())
        return Values(plus * logp, minus * logp)

    def phi(self, ratio: Tensor) -> tuple[Tensor, Tensor]:
        """Of positive and of negative advantages."""
        ratio = ratio.clamp(min=MIN_VESPO_RATIO)
        plus, minus = (
            torch.exp(k * ratio.log() + rate * (1 - ratio))
            for k, rate in ((self.k_pos, self.rate_pos), (self.k_neg, self.rate_neg))
        )
        return plus, minus


SURROGATES: dict[str, type[Surrogate]] = {cls.name: cls for cls in (Clip, Cispo, Sapo, Reinforce, Vespo)}


def surrogate_of(given: Surrogate | str) -> Surrogate:
    """The record itself; a name means that one's defaults. Raises ValueError for any other."""
    if isinstance(given, Surrogate):
        return given
    if given not in SURROGATES:
        raise ValueError(f"surrogate: wanted one of {tuple(SURROGATES)} or a record, got {given!r}")
    return SURROGATES[given]()
