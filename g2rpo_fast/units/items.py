"""The items of a list."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from g2rpo_fast.bounds import Ge
from g2rpo_fast.pieces import Cut, Scored, Units
from g2rpo_fast.types import Rollout


@dataclass(frozen=True, kw_only=True)
class Items(Units):
    """Token t is of item k = how often the separator was complete before t's text began.

    So the separator belongs to the item that it ends. Items from `most` on are one unit, `most`; what ends
    the response and is not in its text, such as the stop token, is of none.
    Rank-GRPO (arXiv 2510.20150). Evidence: code.
    """

    use = "items"
    separator: str = "\n"
    """Between two items."""
    most: Annotated[int, Ge(1)] = 20
    """Items that are units of their own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.separator:
            raise ValueError(f"{self.section}.{self.use}.separator: wanted some text, got ''")

    def __call__(self, scored: Scored) -> tuple[Cut, ...]:
        return tuple(self._cut(rollout, scored.texts_of(rollout)) for rollout in scored.rollouts)

    def _cut(self, rollout: Rollout, texts: list[str]) -> Cut:
        text = "".join(texts)
        if text.startswith(rollout.text):  # without the stop string that ended it
            text = rollout.text
        items = text.split(self.separator)
        end_I = np.cumsum([len(item) + len(self.separator) for item in items])
        begin_K = np.cumsum([0, *map(len, texts)])[:-1]
        unit_K = np.minimum(np.searchsorted(end_I[:-1], begin_K, side="right"), self.most).astype(np.int64)
        if rollout.finish_reason == "stop":
            unit_K[begin_K >= len(text)] = -1
        if items[-1].strip() == "":  # a separator ends the last item, too
            items.pop()
        rest = self.separator.join(items[self.most :])
        return Cut(unit_K=unit_K, texts=(*items[: self.most], *([rest] if items[self.most :] else [])))
