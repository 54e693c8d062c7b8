"""Tokens that right and wrong answers share at an end are not pushed down, and entropy is a cost."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np

from g2rpo_fast.bounds import Ge, Gt, InfinityToo
from g2rpo_fast.pieces import Clock, Memory, Outcome, RowTokens, Scored, TokenCredit
from g2rpo_fast.types import Doubles


@dataclass(frozen=True, kw_only=True)
class Conflicts(TokenCredit):
    """a_t = delta_i (A_i - gamma mean_t H_t) lambda_t of the row's trained tokens.

    lambda_t: 2 where A_i > 0 and 0 where A_i < 0 for tokens of a row's longest start, or longest end, in
    which every token also stands at its place (counted from that end) in a row of the other sign; else 1.
    delta_i: 0 for rows whose mean entropy exceeds `most` (nats), unless the policy's already did in the first
    step (by the mean of -log p of what it sampled). GTPO (arXiv 2508.03772). Evidence: code, with the paper's
    exception and without its undocumented division by the number of conflict tokens.
    """

    use = "conflicts"
    needs = frozenset({"entropy"})
    gamma: Annotated[float, Ge(0)] = 0.1
    """Cost of a nat of the row's mean entropy."""
    most: Annotated[float, Gt(0), InfinityToo] = math.log(2)
    """inf = no row is left out."""

    def memory(self) -> Memory:
        return {"began_above": None}

    def at(self, memory: Memory, clock: Clock) -> Conflicts:
        """In the first step no row is left out."""
        return replace(self, most=self.most if memory["began_above"] is False else math.inf)

    def observe(self, memory: Memory, outcome: Outcome) -> Memory:
        if memory["began_above"] is not None:
            return memory
        return {"began_above": bool(outcome.stats["rollout/nll"] > self.most)}

    def __call__(self, a_N: Doubles, tokens: RowTokens, scored: Scored) -> Doubles:
        assert tokens.entropy_N is not None
        made_N = np.zeros(len(a_N))
        rows = tokens.of_rows
        shared_N = _shared(a_N, tokens, rows, scored.group_R)
        for at in rows.values():
            entropy = tokens.entropy_N[at].mean()
            if entropy <= self.most:
                lambda_N = np.where(shared_N[at], np.where(a_N[at] > 0, 2.0, 0.0), 1.0)
                made_N[at] = (a_N[at] - self.gamma * entropy) * lambda_N
        return made_N


def _shared(a_N: Doubles, tokens: RowTokens, rows: dict[int, np.ndarray], group_R: np.ndarray) -> np.ndarray:
    """[N] bool: tokens of a start or an end that rows of the other sign have too."""
    signs = {row: int(np.sign(a_N[at[0]])) for row, at in rows.items()}
    shared_N = np.zeros(len(a_N), np.bool_)
    for step in (1, -1):
        known: dict[tuple[int, int, int], set[int]] = defaultdict(set)
        for row, at in rows.items():
            for place, token in enumerate(tokens.id_N[at[::step]].tolist()):
                known[int(group_R[row]), signs[row], place].add(token)
        for row, at in rows.items():
            for place, (where, token) in enumerate(
                zip(at[::step].tolist(), tokens.id_N[at[::step]].tolist())
            ):
                if not signs[row] or token not in known[int(group_R[row]), -signs[row], place]:
                    break
                shared_N[where] = True
    return shared_N
