"""The order of the data, epoch after epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from g2rpo_fast.pieces import Chosen, Clock, PromptStore, Selection
from g2rpo_fast.types import Prompt


@dataclass(frozen=True, kw_only=True)
class InOrder(Selection):
    """The next prompts of the epoch (`data.shuffle`: of a new permutation each epoch; `data.order_column`,
    `data.weights`), all groups alike."""

    use = "in_order"
    ordered = True

    def choose(
        self, prompts: Sequence[Prompt], store: PromptStore, clock: Clock, *, count: int, size: int
    ) -> list[Chosen]:
        indices = clock.order.indices(len(prompts), clock.cursor, count)
        return [Chosen(prompt=prompts[i], size=size) for i in indices]
