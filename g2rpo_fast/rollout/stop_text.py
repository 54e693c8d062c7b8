"""Where a row's text first contains a stop string: one definition for all engines."""

from __future__ import annotations

from collections.abc import Sequence

from g2rpo_fast.rollout.prefill import Decode

STOP_MARGIN = 8
"""Tokens decoded before the earliest place where a stop string can begin."""


class StopText:
    """Stop strings and the decoder that they are looked for with."""

    def __init__(self, strings: Sequence[str], decode: Decode) -> None:
        self._strings, self._decode = tuple(strings), decode
        self._num_bytes = max((len(text.encode()) for text in strings), default=0)

    def length_at_stop(self, tokens: Sequence[int], seen: int) -> int | None:
        """Length with the first token after the `seen` first ones that completes a stop string, if one does.

        Decodes only the last tokens: a token that shows at all is at least one byte of text.
        """
        if not self._strings:
            return None
        first = max(0, seen - self._num_bytes - STOP_MARGIN)
        recent = list(tokens[first:])
        if not self._found(recent):
            return None
        return next(n for n in range(seen + 1, len(tokens) + 1) if self._found(recent[: n - first]))

    def _found(self, tokens: Sequence[int]) -> bool:
        text = self._decode(tokens)
        return any(stop in text for stop in self._strings)
