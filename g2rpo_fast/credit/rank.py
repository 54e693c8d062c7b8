"""Ranks in the group, blended with a running z-score."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Self

import numpy as np

from g2rpo_fast.bounds import Ge, Gt, Le
from g2rpo_fast.credit.groups import deviations, whole
from g2rpo_fast.pieces import Clock, Credit, Memory, Outcome, PromptStore, Scored
from g2rpo_fast.types import Doubles


@dataclass(frozen=True, kw_only=True)
class Rank(Credit):
    """(1 - blend) 2 (rank_i / (G - 1) - 1/2) + blend (a_i - mean) / (std + eps), in place of a baseline.

    rank_i = 0 for the lowest of the group, equal ones share the middle of their ranks; a group of one has no
    rank: 0. mean and std are averages over the steps: m <- m + rate (m of the batch's rewards - m).

    FAKER-Air (arXiv 2511.22169). Evidence: code (kaist-cvml/FAKER-Air), but for equal values and for where
    the averages begin, which are ours.
    """

    use = "rank"
    blend: Annotated[float, Ge(0), Le(1)] = 0.1
    """Share of the averaged z-score; 0 = ranks alone."""
    rate: Annotated[float, Gt(0), Le(1)] = 0.05
    """How fast mean and std follow the batch."""
    mean: float = 0.0
    """Before the first step."""
    std: Annotated[float, Ge(0)] = 1.0
    """Before the first step."""
    eps: Annotated[float, Gt(0)] = 1e-6
    """Added to the standard deviation."""

    def memory(self) -> Memory:
        return {"mean": self.mean, "std": self.std}

    def at(self, memory: Memory, clock: Clock) -> Self:
        return replace(self, mean=memory["mean"], std=memory["std"])

    def observe(self, memory: Memory, outcome: Outcome) -> Memory:
        paid = outcome.settled.rewards
        reward_R = paid.total_R[~np.isnan(paid.reward_RK).all(axis=1)]
        if not len(reward_R):
            return memory
        deviation_R, std_R = deviations(reward_R, whole(reward_R))
        batch = {"mean": float(reward_R[0] - deviation_R[0]), "std": float(std_R[0])}
        return {name: value + self.rate * (batch[name] - value) for name, value in memory.items()}

    def notes(self, memory: Memory, clock: Clock) -> dict[str, float]:
        return {f"credit/rank_{name}": value for name, value in memory.items()}

    def __call__(self, a_R: Doubles, scored: Scored, store: PromptStore) -> Doubles:
        z_R = (a_R - self.mean) / (self.std + self.eps)
        return (1 - self.blend) * centred_ranks(a_R, scored.group_R) + self.blend * z_R


def centred_ranks(value_R: Doubles, group_R: np.ndarray) -> Doubles:
    """[R] 2 (rank / (G - 1) - 1/2) in [-1, 1] within the row's group; equal values share their mean rank."""
    rank_R = np.zeros(len(value_R))
    for group in np.unique(group_R):
        rows = np.flatnonzero(group_R == group)
        value, among = value_R[rows, None], value_R[rows]
        rank_R[rows] = ((among < value).sum(1) - (among > value).sum(1)) / max(len(rows) - 1, 1)
    return rank_R
