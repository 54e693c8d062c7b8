"""The reward is the share of pairwise comparisons within the group that a response wins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from numbers import Real
from typing import Any

import numpy as np

from g2rpo_fast.own import PieceError, called, function_of
from g2rpo_fast.pieces import Scored, Shaping
from g2rpo_fast.types import Doubles, Rewards


@dataclass(frozen=True, kw_only=True)
class WinRate(Shaping):
    """R_i = (wins_i + ties_i / 2) / comparisons_i over all pairs of the group, in place of all that was paid.

    Without a comparator the higher value of `channel` wins, of rows that it applies to. A row without an
    opponent gets nothing. Pref-GRPO (arXiv 2508.20751). Evidence: code (CodeGoat24/Pref-GRPO); both orders
    of a pair are our addition.
    """

    use = "win_rate"
    comparator: Any = ""
    """A function (one, other, prompt) of two texts and the prompt's, or "module:function": 1 where the first
    is better, 0 where the second is, 0.5 for a tie. "" = none."""
    channel: str | None = None
    """What is compared without a comparator; none = the sum of the rewards."""
    both_orders: bool = False
    """Each pair is shown to the comparator in both orders, against its bias to one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.comparator:
            function_of(self.comparator, self._key)

    @property
    def _key(self) -> str:
        return f"{self.section}.{self.use}.comparator"

    def channels(self) -> dict[str, str]:
        return {} if self.channel is None else {"channel": self.channel}

    def __call__(self, scored: Scored) -> Rewards:
        share = self._by_text(scored) if self.comparator else self._by_value(scored)
        won_R, played_R = np.zeros(len(scored.rollouts)), np.zeros(len(scored.rollouts))
        for group in np.unique(scored.group_R):
            for one, other in combinations(np.flatnonzero(scored.group_R == group).tolist(), 2):
                won = share(one, other)
                if not np.isnan(won):
                    won_R[[one, other]] += won, 1 - won
                    played_R[[one, other]] += 1
        rate_R = np.full(len(won_R), np.nan)
        np.divide(won_R, played_R, out=rate_R, where=played_R > 0)
        return scored.rewards.only(self.use, rate_R)

    def _by_value(self, scored: Scored) -> Callable[[int, int], float]:
        rewards = scored.rewards
        value_R: Doubles = rewards.total_R if self.channel is None else rewards.channel(self.channel)
        return lambda one, other: 0.5 + 0.5 * float(np.sign(value_R[one] - value_R[other]))

    def _by_text(self, scored: Scored) -> Callable[[int, int], float]:
        def asked(one: int, other: int) -> float:
            first, second = scored.rollouts[one], scored.rollouts[other]
            won = called(self._key, self.comparator, first.text, second.text, first.prompt.text)
            if not (isinstance(won, Real) and 0 <= float(won) <= 1):
                raise PieceError(f"{self._key}: wanted a number in [0, 1], got {won!r}")
            return float(won)

        if not self.both_orders:
            return asked
        return lambda one, other: (asked(one, other) + 1 - asked(other, one)) / 2
