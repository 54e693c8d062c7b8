"""How long responses get, from samples that were cut off early.

A response that was seen to end has its length. One that was cut goes on from there by a constant chance to
end, that of the later half of what was seen:

    h = responses that ended beyond token K / 2 / tokens sampled beyond it,    K = longest seen
    P(n more tokens) = h (1 - h)^(n - 1)

Responses often end soon or late: a chance from all tokens would make the late ones too short. Rows that were
not sampled are as long as some that were.

Dimension key: R rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from g2rpo_fast.types import Completion, Longs


def late_hazard(completions: Sequence[Completion]) -> float:
    """h; 0 where none ended late."""
    length_R = np.array([len(completion.token_ids) for completion in completions])
    start = int(length_R.max(initial=0)) // 2
    late = [c for c in completions if len(c.token_ids) > start]
    tokens = sum(len(completion.token_ids) - start for completion in late)
    return sum(completion.finish_reason == "stop" for completion in late) / tokens if tokens else 0.0


@dataclass(frozen=True)
class Lengths:
    """How long responses get, if nothing limits them."""

    known: tuple[float, ...]
    """Lengths to draw from; inf = longer than any limit. Empty:"""
    mean: float = 0.0
    """Of geometric lengths."""

    @classmethod
    def seen(cls, completions: Sequence[Completion], *, seed: int) -> Lengths:
        """From what was sampled."""
        rate, rng = late_hazard(completions), np.random.default_rng(seed)
        known = [
            len(c.token_ids)
            + (0 if c.finish_reason == "stop" else rng.geometric(rate) if rate else float("inf"))
            for c in completions
        ]
        return cls(tuple(map(float, known)))

    def draw(self, limit_R: Longs, *, seed: int) -> Longs:
        """[R] lengths from 1 to each row's limit."""
        rng = np.random.default_rng(seed)
        if self.known:
            drawn_R = rng.choice(np.array(self.known), len(limit_R))
        else:
            drawn_R = rng.geometric(1 / max(self.mean, 1.0), len(limit_R)).astype(np.float64)
        return np.minimum(drawn_R, limit_R).astype(np.int64)


def completed(
    completions: Sequence[Completion], lengths: Lengths, limit_R: Longs, *, vocabulary: int, seed: int
) -> list[Completion]:
    """What the responses may have become without the cut: those that had not ended get more tokens, made up.

    Args:
        completions: as sampled, for the first rows, whose lengths are the first of `lengths.known` if there
            are any. Rows without one are made up altogether.
    """
    length_R = lengths.draw(limit_R, seed=seed)
    seen = len(completions) if lengths.known else 0
    length_R[:seen] = np.minimum(lengths.known[:seen], limit_R[:seen])
    rng = np.random.default_rng((seed, 1))
    made = []
    for row, (length, limit) in enumerate(zip(length_R.tolist(), limit_R.tolist(), strict=True)):
        known = completions[row].token_ids[:length] if row < len(completions) else ()
        made.append(
            Completion(
                token_ids=(*known, *rng.integers(vocabulary, size=length - len(known)).tolist()),
                logp=np.full(length, -1.0, np.float32),
                finish_reason="stop" if length < limit else "length",
                weight_version=0,
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
