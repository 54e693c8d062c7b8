"""Where a response's text first has a stop string, and its text without it: one definition for all engines.

Tokens that show as nothing may lie between a stop string's pieces, any number of them. One of them is found
where a stop string names it: `<|im_end|>` ends a response though rewards never read it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

from g2rpo_fast.rollout.text_decoder import UNFINISHED, Decode, TextDecoder
from g2rpo_fast.types import Sampling

MOST_BYTES = 4
"""Of one character in UTF-8."""
HEAD = 4
"""Characters at a part's start that may not be the whole text's: a stripped space, a WordPiece's `##`."""
MARGIN = 8
"""Tokens that the first try at a part has, beyond one a character."""


class StopText:
    """Stop strings and the decoder of the text that they are looked for in."""

    def __init__(self, strings: Sequence[str], decode: Decode) -> None:
        shown = {s: decode.showing(s) if isinstance(decode, TextDecoder) else decode for s in strings}
        plain = tuple(string for string, by in shown.items() if by is decode)
        self._decode = decode
        self._searches = [_Search(decode, plain)] if plain else []
        self._searches += [_Search(by, (string,)) for string, by in shown.items() if by is not decode]

    def length_at_stop(self, tokens: Sequence[int], seen: int) -> int | None:
        """Length with the first token after the `seen` first ones that completes a stop string, if one does.

        It may begin in the first ones; one that they complete themselves does not count. What is found is
        what a search of the whole text after every token finds; only the last tokens are decoded for it.
        """
        found = (search.length_at_stop(tokens, seen) for search in self._searches)
        return min((length for length in found if length is not None), default=None)

    def before_stop(self, tokens: Sequence[int]) -> str | None:
        """The text up to the stop string that the last token completes; None if it completes none."""
        found = (search.before(tokens, self._decode) for search in self._searches)
        return min((text for text in found if text is not None), key=len, default=None)


class ResponseText:
    """The text of a response that was sampled with some stops."""

    def __init__(self, sampling: Sampling, decode: Decode) -> None:
        self._stop_ids = frozenset(sampling.stop_token_ids)
        self._stop_text, self._decode = StopText(sampling.stop_strings, decode), decode

    def __call__(self, response_ids: Sequence[int], guidance_len: int) -> str:
        """Without the stop token or stop string that its last sampled token is or completes."""
        if len(response_ids) <= guidance_len:
            return self._decode(response_ids)
        text = self._stop_text.before_stop(response_ids)
        if text is not None:
            return text
        return self._decode(response_ids[:-1] if response_ids[-1] in self._stop_ids else response_ids)


@dataclass(frozen=True)
class _Search:
    """Strings that are looked for in the same text."""

    decode: Decode
    strings: tuple[str, ...]
    ends: dict[int, bool] = field(default_factory=dict)
    """Of every token looked at so far, whether it can complete one of the strings."""

    def length_at_stop(self, tokens: Sequence[int], seen: int) -> int | None:
        """As `StopText.length_at_stop`."""
        if not any(map(self._may_end, tokens[seen:])):
            return None
        first, settled = self._part(tokens, seen)
        text = self.decode(tokens[first:])
        if UNFINISHED not in text[settled:] and self._begin(text, settled) is None:
            return None
        for length in range(seen + 1, len(tokens) + 1):
            if self._begin(self.decode(tokens[first:length]), settled) is None:
                continue
            if not first or self._completed(tokens[:length], seen):
                return length
        return None

    def before(self, tokens: Sequence[int], visible: Decode) -> str | None:
        """As `StopText.before_stop`; the text is `visible`'s."""
        shown = self.decode(tokens)
        begin = self._begin(shown, self._settled(tokens[:-1]))
        if begin is None or self.decode is visible:
            return None if begin is None else shown[:begin]
        ends = range(len(tokens) + 1)  # the token that `begin` lies in is split, those before it are whole
        whole = bisect_right(ends, begin, key=lambda length: self._settled(tokens[:length])) - 1
        part = shown[self._settled(tokens[:whole]) : begin].lstrip(UNFINISHED)
        text = visible(tokens[:whole])
        return text.rstrip(UNFINISHED) + part if part else text

    def _part(self, tokens: Sequence[int], seen: int) -> tuple[int, int]:
        """The first of the last tokens that are enough to decode, and how much text of theirs is settled.

        A stop string that a token after the `seen` first ones completes has at most all but one of its
        characters in the text before; so many must be there, unfinished characters on either side aside.
        """
        width = max(map(len, self.strings)) + MARGIN
        while width < seen:
            part = tokens[seen - width : seen]
            if len(self.decode(part).strip(UNFINISHED)) >= max(map(len, self.strings)) + HEAD:
                return seen - width, self._settled(part)
            width *= 2
        return 0, self._settled(tokens[:seen])

    def _completed(self, tokens: Sequence[int], seen: int) -> bool:
        """Whether the whole text has a stop string that a token after the `seen` first ones completes."""
        return self._begin(self.decode(tokens), self._settled(tokens[:seen])) is not None

    def _may_end(self, token: int) -> bool:
        """Whether a token's text, behind another token's, has a string's last character or is unfinished."""
        if token not in self.ends:
            text = self.decode([token, token])
            self.ends[token] = any(last in text for last in (UNFINISHED, *(s[-1] for s in self.strings)))
        return self.ends[token]

    def _settled(self, tokens: Sequence[int]) -> int:
        """Characters that stay as they are whatever follows.

        Byte tokens in a row decode together: while the last character is unfinished, those before it look so.
        """
        text = self.decode(tokens)
        if not text.endswith(UNFINISHED):
            return len(text)
        begun = range(max(0, len(tokens) - MOST_BYTES), len(tokens) + 1)
        return max(len(self.decode(tokens[:length]).rstrip(UNFINISHED)) for length in begun)

    def _begin(self, text: str, settled: int) -> int | None:
        """Where the first stop string begins that ends behind the `settled` first characters."""
        places = (text.find(string, max(0, settled - len(string) + 1)) for string in self.strings)
        return min((place for place in places if place >= 0), default=None)
