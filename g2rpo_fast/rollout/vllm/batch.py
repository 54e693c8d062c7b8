"""What the rows of a batch have sampled so far in the engine process, and when each has ended.

The end of a row is the local engine's: the first token that is a stop token or completes a stop string, else
`max_tokens`. vLLM itself stops at stop tokens and the limit; stop strings are looked for here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from g2rpo_fast.rollout.stop_text import StopText
from g2rpo_fast.types import Completion, Request, Sampling

LOOK_EVERY = 4
"""Tokens of a row between two looks for stop strings; what comes behind a stop is discarded."""


@dataclass
class Row:
    """One request's tokens, with log-probabilities and the weights that drew them."""

    given: list[int]
    """What a stop string may begin in, in front of the tokens."""
    tokens: list[int] = field(default_factory=list)
    logp: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    seen: int = 0
    """Tokens in which no stop string was found."""


class Batch:
    """The rows of one submitted batch, by their place in it."""

    def __init__(self, requests: dict[int, Request], sampling: Sampling, stop_text: StopText | None) -> None:
        self.rows = {index: Row(list(request.given_ids)) for index, request in requests.items()}
        self._stop_ids = set(sampling.stop_token_ids)
        self._stop_text = stop_text
        self._finished: dict[int, Completion] = {}

    @property
    def unfinished(self) -> bool:
        return bool(self.rows)

    def add(
        self, index: int, tokens: Sequence[int], logp: Sequence[float], version: int, *, ended: bool
    ) -> bool:
        """Takes in a row's next tokens; `ended` = vLLM has ended it. Whether the row is done."""
        row = self.rows[index]
        row.tokens += tokens
        row.logp += logp
        row.versions += [version] * len(tokens)
        length = len(row.tokens)
        if self._stop_text is not None and (ended or length - row.seen >= LOOK_EVERY):
            given = len(row.given)
            stop = self._stop_text.length_at_stop(row.given + row.tokens, given + row.seen)
            row.seen = length
            if stop is not None:
                self._finish(index, stop - given, stopped=True)
                return True
        if ended:
            self._finish(index, length, stopped=bool(length) and row.tokens[-1] in self._stop_ids)
        return ended

    def take_finished(self) -> dict[int, Completion]:
        """Completions since the last call, by their request's place."""
        finished, self._finished = self._finished, {}
        return finished

    def _finish(self, index: int, length: int, *, stopped: bool) -> None:
        row = self.rows.pop(index)
        self._finished[index] = Completion(
            token_ids=tuple(row.tokens[:length]),
            logp=np.asarray(row.logp[:length], np.float32),
            finish_reason="stop" if stopped else "length",
            weight_version=min(row.versions[:length]),
            token_versions=np.asarray(row.versions[:length], np.int32),
        )
