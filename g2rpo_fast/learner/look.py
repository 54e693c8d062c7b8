"""What is known of the old policy before the first step of an update, taken in one pass.

Dimension key: T trained edges, N tokens of all rows of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from g2rpo_kernels import linear_logprob
from torch import Tensor

from g2rpo_fast.learner.influence import Seen, influence
from g2rpo_fast.learner.policy import Policy, Stream
from g2rpo_fast.objective.batch import TrainBatch
from g2rpo_fast.pieces import TokenPiece
from g2rpo_fast.types import Bools, Doubles, Longs


@dataclass(frozen=True, kw_only=True)
class Look:
    """Of one policy, along the tokens of a batch: float64, NaN where a token is not trained."""

    logp_N: Doubles
    entropy_N: Doubles
    hot_logp_N: Doubles | None = None
    """logp at a second temperature."""
    influence_N: Doubles | None = None
    """See `influence`."""

    def keep(self, index_N: Longs) -> Look:
        """Of some of the tokens."""
        hot_N, influence_N = self.hot_logp_N, self.influence_N
        return Look(
            logp_N=self.logp_N[index_N],
            entropy_N=self.entropy_N[index_N],
            hot_logp_N=None if hot_N is None else hot_N[index_N],
            influence_N=None if influence_N is None else influence_N[index_N],
        )


@torch.no_grad()
def look(
    policy: Policy,
    streams: Sequence[Stream],
    batch: TrainBatch,
    *,
    hot: float | None = None,
    right_B: Bools | None = None,
) -> Look:
    """One forward of each stream, and one product with the head; a second one with `hot`.

    Args:
        batch: that the streams' plans index.
        hot: a second temperature, in units of the policy's own.
        right_B: which rows of the batch are right, where the tokens' influence on them is wanted.
    """
    numbers = [np.full(len(batch.sequences.ids_N), np.nan) for _ in range(2 + (hot is not None))]
    seen: list[Seen] = []
    with policy.rounded():
        for stream in streams:
            with policy.forced(stream):
                hidden_SD = policy.hidden(stream.plan).hidden_SD
            found = policy.through_head(linear_logprob, hidden_SD, stream)
            values: list[Tensor] = [found.logp_T, found.entropy_T]
            if right_B is not None:
                seen.append(Seen(stream, hidden_SD[stream.source_T].to(found.lse_T), found.lse_T))
            if hot is not None:
                temperature = hot * policy.temperature
                values.append(
                    policy.through_head(linear_logprob, hidden_SD, stream, temperature=temperature).logp_T
                )
            for value_T, out_N in zip(values, numbers, strict=True):
                stream.scatter(value_T, out_N)
    return Look(
        logp_N=numbers[0],
        entropy_N=numbers[1],
        hot_logp_N=numbers[2] if hot is not None else None,
        influence_N=None if right_B is None else influence(policy, seen, batch, right_B),
    )


def hot_temperature(pieces: Sequence[TokenPiece]) -> float | None:
    """The second temperature that pieces need; None = none does. ValueError where they need several."""
    wanted = sorted({piece.hot_temperature() for piece in pieces if "hot_logp" in piece.needs})
    if len(wanted) > 1:
        raise ValueError(f"hot_logp: wanted one second temperature, got {wanted}")
    return wanted[0] if wanted else None
