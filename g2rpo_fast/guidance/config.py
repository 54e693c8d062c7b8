"""Settings of the guidance stage. Defaults: the published method (arXiv 2508.13023 and its released code)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from g2rpo_fast.bounds import Ge, Gt, InfinityToo, Le, check_fields

Unit = Literal["tokens", "fraction"]

PUBLISHED_MAX_TOKENS = 3072


@dataclass(frozen=True, kw_only=True)
class GuidanceConfig:
    """Who is guided, by how much, and what moves the guidance length l."""

    enabled: bool = True
    """Off: plain GRPO."""
    share: Annotated[float, Ge(0), Le(1)] = 0.25
    """alpha, the guided share of a group. The paper's best for maths (its Table 9): 1/4 for Qwen3-1.7B, 3/4
    for Qwen3-0.6B; the released code guides 2 of 12."""
    rounding: Literal["round", "floor", "ceil"] = "round"
    """Of alpha * G to a number of members ("round": half up)."""
    members: Literal["first", "stratified"] = "first"
    """"first": the first k members of every group. "stratified": alpha is met over the whole batch; groups
    whose alpha * G is not whole take turns with the extra member from step to step."""
    unit: Unit | None = None
    """Of l and its bounds: tokens, or a fraction of each prompt's trace. None = a fraction, unless a length
    above 1 is given or the controller is "official": those are tokens."""
    controller: Literal["paper", "official", "windowed", "fixed", "linear", "cosine", "step", "concave"] = (
        "paper"
    )
    """"paper": every step, l times mean of the last T accuracies over this step's. "official": the released
    code's three-step cycle. "windowed": window mean over window mean, smoothed and bounded: the sturdy form.
    The others are schedules from length_init to length_final."""
    length_init: Annotated[float, Gt(0)] | None = None
    """l of the first step. None: 0.8 length_max as a fraction, length_max in tokens (published: 3072)."""
    length_min: Annotated[float, Gt(0)] | None = None
    """Adaptive controllers never go below. None: 1 token, or 0.05 of the trace."""
    length_max: Annotated[float, Gt(0)] | None = None
    """Nor above. None: 3072 tokens (published), or the whole trace."""
    length_final: Annotated[float, Ge(0)] = 0.0
    """Where a schedule ends ("step": the floor it never passes)."""
    step_every: Annotated[int, Ge(1)] = 50
    """"step": steps between two cuts."""
    step_factor: Annotated[float, Gt(0), Le(1)] = 0.5
    """"step": what each cut multiplies l by."""
    concave_power: Annotated[float, Gt(0), Le(1)] = 0.5
    """"concave": l falls as (1 - progress) ** power, slowly first and fast at the end."""
    window: Annotated[int, Ge(1)] = 2
    """T: how many earlier steps "paper" averages (released code: 2); the width of a "windowed" window."""
    eps: Annotated[float, Gt(0)] = 0.02
    """"windowed": added to both window means, so that accuracies near 0 make no large ratio."""
    max_factor: Annotated[float, Gt(1), InfinityToo] = 2.0
    """Most that one "windowed" update changes l by, either way; what "paper" lengthens by at accuracy 0."""
    in_loss: bool = True
    """Guidance tokens carry the row's advantage in the loss (released code) or are masked."""
    controller_input: Literal["all", "unguided"] = "all"
    """Whose accuracy the controller sees (released code: all)."""
    reserve: Annotated[int, Ge(1)] = 16
    """Response tokens always left to the model, however long the guidance."""

    @property
    def counts(self) -> Unit:
        """What lengths count: `unit`, or what it stands for where it is none."""
        if self.unit is not None:
            return self.unit
        given = (self.length_init, self.length_min, self.length_max, self.length_final)
        tokens = self.controller == "official" or any(length and length > 1 for length in given)
        return "tokens" if tokens else "fraction"

    @property
    def upper(self) -> float:
        """Largest l, in `unit`."""
        if self.length_max is not None:
            return self.length_max
        return float(PUBLISHED_MAX_TOKENS) if self.counts == "tokens" else 1.0

    @property
    def lower(self) -> float:
        """Smallest l of an adaptive controller, in `unit`."""
        if self.length_min is not None:
            return self.length_min
        return 1.0 if self.counts == "tokens" else 0.05

    @property
    def first(self) -> float:
        """l of the first step, in `unit`."""
        if self.length_init is not None:
            return self.length_init
        return self.upper if self.counts == "tokens" else 0.8 * self.upper

    def __post_init__(self) -> None:
        check_fields(self, "guidance")
        self._check_lengths()
        self._check_combinations()

    def _check_lengths(self) -> None:
        tokens = self.counts == "tokens"
        whole = 'at most 1, the whole trace (tokens: unit = "tokens")'
        _check("length_max", whole, self.upper, tokens or self.upper <= 1)
        _check("length_min", "at least 1 token", self.lower, not tokens or self.lower >= 1)
        _check("length_min", f"at most length_max ({self.upper:g})", self.lower, self.lower <= self.upper)
        _check(
            "length_init",
            f"length_min ({self.lower:g}) to length_max ({self.upper:g})",
            self.first,
            self.lower <= self.first <= self.upper,
        )
        _check(
            "length_final",
            f"at most length_max ({self.upper:g})",
            self.length_final,
            self.length_final <= self.upper,
        )

    def _check_combinations(self) -> None:
        _check(
            "unit",
            '"tokens" (controller="official" counts whole tokens)',
            self.unit,
            self.controller != "official" or self.counts == "tokens",
        )
        _check(
            "share",
            'below 1 (controller_input="unguided" needs unguided members)',
            self.share,
            self.controller_input == "all" or self.share < 1,
        )


def _check(key: str, wanted: str, got: object, ok: bool) -> None:
    if not ok:
        raise ValueError(f"guidance.{key}: wanted {wanted}, got {got!r}")
