"""A budget of rollouts spread over prompts one by one, each to where it gains most."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np

from g2rpo_fast.select.recent import Sized
from g2rpo_fast.types import Doubles, Longs


@dataclass(frozen=True, kw_only=True)
class MarginalGain(Sized):
    """From `least` each, the next rollout always goes to the prompt with the largest U(n + 1, p) - U(n, p),
    U(n, p) = n (1 - p) [1 - (1 - p)^(n - 1)]: expected failures times the chance that another one succeeds.
    Of equal gains the smaller group first.

    The allocation of V_0 (arXiv 2602.03584), with the success rate of a prompt's last outcomes in place of
    its value model. Evidence: notes. The gain nears 1 - p as n grows, so the rule favours rare
    successes; it may rise before, so the rule is not always the optimum.
    """

    use = "marginal_gain"

    def sizes(self, rate_C: Doubles, budget: int, least: int, most: int) -> Longs:
        size_C = np.full(len(rate_C), least)
        heap = [(-gain(least, p), least, place) for place, p in enumerate(rate_C.tolist())]
        heapq.heapify(heap)
        for _ in range(budget - int(size_C.sum())):
            _, n, place = heapq.heappop(heap)
            size_C[place] = n + 1
            if n + 1 < most:
                heapq.heappush(heap, (-gain(n + 1, float(rate_C[place])), n + 1, place))
        return size_C


def utility(n: int, p: float) -> float:
    return n * (1 - p) * (1 - (1 - p) ** (n - 1))


def gain(n: int, p: float) -> float:
    """Of one rollout more than `n`."""
    return utility(n + 1, p) - utility(n, p)
