"""How long responses get, from samples that were cut off early.

    h = responses that ended / tokens sampled,    P(length = n) = h (1 - h)^(n - 1)

One hazard for all positions is the simplest model that reads cut-off samples without bias where it holds. A
response that was seen to end keeps its length; others go on from where they were cut.

Dimension key: R rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from g2rpo_fast.types import Completion, Longs


def hazard(completions: Sequence[Completion]) -> float:
    """Chance that a token ends its response; 0 where none did."""
    ended = sum(completion.finish_reason == "stop" for completion in completions)
    tokens = sum(len(completion.token_ids) for completion in completions)
    return ended / tokens if tokens else 0.0


def draw_lengths(limit_R: Longs, rate: float, *, seed: int) -> Longs:
    """[R] lengths from 1 to each row's limit; all at their limits where `rate` is 0."""
    if rate <= 0:
        return limit_R.copy()
    drawn_R = np.random.default_rng(seed).geometric(min(rate, 1.0), len(limit_R))
    return np.minimum(drawn_R, limit_R)


def completed(
    completions: Sequence[Completion], limit_R: Longs, rate: float, *, vocabulary: int, seed: int
) -> list[Completion]:
    """What the responses may have become without the cut: those that had not ended get more tokens, made up.

    Args:
        completions: as sampled, for the first rows. Rows without one are made up altogether.
    """
    more_R = draw_lengths(limit_R, rate, seed=seed)
    rng = np.random.default_rng((seed, 1))
    made = []
    for row, limit in enumerate(limit_R.tolist()):
        seen = completions[row] if row < len(completions) else None
        if seen is not None and seen.finish_reason == "stop":
            made.append(seen)
            continue
        known = () if seen is None else seen.token_ids
        length = min(len(known) + int(more_R[row]), limit)
        filler = rng.integers(vocabulary, size=length - len(known)).tolist()
        made.append(
            Completion(
                token_ids=(*known, *filler),
                logp=np.full(length, -1.0, np.float32),
                finish_reason="stop" if length < limit else "length",
                weight_version=0 if seen is None else seen.weight_version,
            )
        )
    return made


def shortened(completions: Sequence[Completion], most: int) -> list[Completion]:
    """Their first `most` tokens."""
    return [
        completion
        if len(completion.token_ids) <= most
        else replace(
            completion,
            token_ids=completion.token_ids[:most],
            logp=completion.logp[:most],
            finish_reason="length",
            token_versions=None,
        )
        for completion in completions
    ]
