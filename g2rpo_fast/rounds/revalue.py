"""Groups without a signal make room for copies of the most valuable ones."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from g2rpo_fast.credit.groups import deviations
from g2rpo_fast.pieces import Memory, Round, Scored
from g2rpo_fast.types import Doubles, Longs


@dataclass(frozen=True, kw_only=True)
class Revalue(Round):
    """In place of each group whose members were all paid alike a copy of one of the others, drawn with
    replacement by its value (max_g R - mean_g R) std_g R, with the sample standard deviation. Where no group
    has a value, all stay.

    VSPO (arXiv 2512.07478). Evidence: approx: the value is from a summary of the paper; that the rows of the
    group itself are repeated, at no cost of rollouts, is our reading of "re-drawing (repeating) groups".
    """

    use = "revalue"

    def settle(self, scored: Scored, memory: Memory) -> Scored:
        groups, value_Q = values(scored)
        silent, others = groups[value_Q == 0], groups[value_Q > 0]
        if not len(others) or not len(silent):
            return scored
        edges = np.cumsum(value_Q[value_Q > 0])
        point = scored.clock.generator(self.use).random(len(silent)) * edges[-1]
        drawn = others[np.searchsorted(edges, point, side="right").clip(max=len(others) - 1)]
        group_R = scored.group_R
        place = {int(group): group_R == group for group in others}
        rows = [(int(row), int(group_R[row])) for row in np.flatnonzero(np.isin(group_R, others))]
        for group, copied in zip(silent.tolist(), drawn.tolist(), strict=True):
            rows += [(int(row), group) for row in np.flatnonzero(place[copied])]
        rows.sort(key=lambda pair: pair[1])
        kept = scored.keep([row for row, _ in rows])
        named = zip(kept.rollouts, rows, strict=True)
        return replace(kept, rollouts=tuple(replace(rollout, group=group) for rollout, (_, group) in named))


def values(scored: Scored) -> tuple[Longs, Doubles]:
    """([Q] groups, [Q] what each is worth); 0 = all paid alike."""
    groups, index_R = np.unique(scored.group_R, return_inverse=True)
    above_R, std_R = deviations(scored.rewards.total_R, index_R)
    value_Q = np.zeros(len(groups))
    np.maximum.at(value_Q, index_R, above_R * std_R)
    return groups, value_Q
