"""The weight of long and short rows, by an exponent that is learned."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Self

import numpy as np

from g2rpo_fast.bounds import Gt
from g2rpo_fast.credit.groups import deviations, totals
from g2rpo_fast.own import PieceError
from g2rpo_fast.pieces import Clock, Memory, Outcome, RowTokens, Scored, Weight
from g2rpo_fast.types import Doubles


@dataclass(frozen=True, kw_only=True)
class LearnedLength(Weight):
    """w_t <- s f_i w_t,  f_i = G softmax_g(h_i^power),  h_i = 1 + r z_i,  z_i = (n_i - mean_g n) / std_g n.

    n_i = tokens that row i trains, std that of the population (0: z = 0); s keeps the sum of all tokens'
    weights. power 0 weighs all alike; below 0 it favours short rows, above 0 long ones.

    After the step power <- power + rate dJ/dpower, of J = s / sum_j n_j sum_i f_i n_i A_i, which is the
    objective at ratio 1, with s held: dJ/dpower = s / sum_j n_j sum_i n_i A_i f_i (u_i - sum_g f u / G), u =
    h^power log h. That is exact with one pass, one minibatch, the mean over tokens, and advantages that are
    one a row.

    lambda-GRPO (arXiv 2510.06870). Evidence: notes (how the sum is kept was not seen).
    """

    use = "learned_length"
    r: Annotated[float, Gt(0)] = 1 / 9
    """How far a length of one standard deviation moves h from 1."""
    power: float = 0.0
    """Before the first step; then it is the memory's."""
    rate: Annotated[float, Gt(0)] = 0.1
    """Of its SGD."""

    def memory(self) -> Memory:
        return {"power": self.power}

    def at(self, memory: Memory, clock: Clock) -> Self:
        return replace(self, power=memory["power"])

    def notes(self, memory: Memory, clock: Clock) -> dict[str, float]:
        return {"weights/length_power": memory["power"]}

    def __call__(self, tokens: RowTokens, scored: Scored) -> Doubles:
        factor_R, _ = self._factors(scored)
        return factor_R[tokens.row_N]

    def observe(self, memory: Memory, outcome: Outcome) -> Memory:
        power = memory["power"]
        return {
            "power": power
            + self.rate * replace(self, power=power).slope(outcome.settled, outcome.advantage_R)
        }

    def slope(self, scored: Scored, advantage_R: Doubles) -> float:
        """dJ/dpower; 0 without a trained token."""
        if not len(scored.rollouts):
            return 0.0
        factor_R, change_R = self._factors(scored)
        count_R = _counts(scored)
        part_R = count_R * advantage_R * factor_R * change_R
        return float(_sum(part_R) / max(_sum(count_R), 1.0))

    def _factors(self, scored: Scored) -> tuple[Doubles, Doubles]:
        """[R] s f and [R] d log f / dpower."""
        count_R, group_R = _counts(scored), scored.group_R
        size_R = totals(np.ones(len(count_R)), group_R)
        deviation_R, _ = deviations(count_R, group_R)
        std_R = np.sqrt(totals(deviation_R**2, group_R) / size_R)
        h_R = 1 + self.r * deviation_R / np.where(std_R > 0, std_R, 1.0)
        if h_R.min(initial=1.0) <= 0:
            raise PieceError(
                f"{self.section}.{self.use}.r: wanted 1 + r z above 0, in groups of {int(size_R.max())} "
                f"below {1 / np.sqrt(max(size_R.max() - 1, 1)):.3g}, got {self.r:g}"
            )
        # By the C library: NumPy's own functions differ between processors.
        raised_R = np.asarray([h**self.power for h in h_R.tolist()])
        score_R = np.asarray([math.exp(raised) for raised in raised_R.tolist()])
        f_R = size_R * score_R / totals(score_R, group_R)
        u_R = raised_R * np.asarray([math.log(h) for h in h_R.tolist()])
        change_R = u_R - totals(f_R * u_R, group_R) / size_R
        return f_R * (_sum(count_R) / max(_sum(f_R * count_R), 1.0)), change_R


def _counts(scored: Scored) -> Doubles:
    """[R] trained tokens."""
    return np.asarray([rollout.loss_mask.sum() for rollout in scored.rollouts], np.float64)


def _sum(value_R: Doubles) -> float:
    """One addition a row, in order."""
    return float(np.bincount(np.zeros(len(value_R), np.int64), value_R, minlength=1)[0])
