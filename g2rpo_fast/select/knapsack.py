"""A budget of rollouts spread over prompts by what each rollout is worth: an exact knapsack."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from g2rpo_fast.bounds import Gt, Lt
from g2rpo_fast.select.recent import Sized, dealt
from g2rpo_fast.types import Doubles, Longs


@dataclass(frozen=True, kw_only=True)
class Knapsack(Sized):
    """Group sizes n_q that maximise sum_q V(n_q, p_q) with sum_q n_q = the step's rollouts,
    V(n, p) = (1 - p^n - (1 - p)^n) p (1 - p)^2, by dynamic programming; p = success rate of the prompt's last
    outcomes.

    Prompts with p = 0 or 1 get `least`, unknown ones the group size. Where the others need fewer than there
    are, floor(log(1 - sure) / log max(p, 1 - p)) each beside `least`, the surplus goes to prompts with p = 0.
    Knapsack RL (arXiv 2509.25849). Evidence: code (there no group of p = 0 has a bound).
    """

    use = "knapsack"
    sure: Annotated[float, Gt(0), Lt(1)] = 0.9
    """Chance of a group with both outcomes that counts as enough."""

    def sizes(self, rate_C: Doubles, budget: int, least: int, most: int) -> Longs:
        size_C = np.full(len(rate_C), least)
        mixed = np.flatnonzero((rate_C > 0) & (rate_C < 1))
        hopeless, solved = np.flatnonzero(rate_C == 0), np.flatnonzero(rate_C == 1)
        left = budget - int(size_C.sum())
        for_mixed = left if len(mixed) else 0
        if len(hopeless):
            for_mixed = min(left, sum(min(self._enough(p), most) for p in rate_C[mixed].tolist()))
        for_mixed = min(for_mixed, len(mixed) * (most - least))
        size_C[mixed] = best_sizes(rate_C[mixed], for_mixed + least * len(mixed), least, most)
        return dealt(size_C, left - for_mixed, (hopeless, solved, mixed), most)

    def _enough(self, p: float) -> int:
        return math.floor(math.log(1 - self.sure) / math.log(max(p, 1 - p)))


def worth(n: Longs, p: float) -> Doubles:
    """Chance of a group with both outcomes, times what it teaches: [len(n)] for group sizes `n`. By the C
    library: NumPy's own powers differ between processors."""
    return np.asarray([(1 - p**size - (1 - p) ** size) * p * (1 - p) ** 2 for size in n.tolist()])


def best_sizes(rate_C: Doubles, budget: int, least: int, most: int) -> Longs:
    """[C] of the largest summed worth with this sum; of equal ones that with the smallest last sizes."""
    num_extra = budget - least * len(rate_C)
    best = np.full(num_extra + 1, -np.inf)  # by what has been given so far beside `least` each
    best[0] = 0.0
    given: list[Longs] = []
    for p in rate_C.tolist():
        gain = worth(np.arange(least, most + 1), p)
        before, best = best, np.full(num_extra + 1, -np.inf)
        choice = np.zeros(num_extra + 1, np.int64)
        for extra in range(min(most - least, num_extra) + 1):
            value = before[: num_extra + 1 - extra] + gain[extra]
            better = value > best[extra:]
            best[extra:][better] = value[better]
            choice[extra:][better] = extra
        given.append(choice)
    sizes, left = [], num_extra
    for choice in reversed(given):
        sizes.append(least + int(choice[left]))
        left -= int(choice[left])
    return np.asarray(sizes[::-1], np.int64)
