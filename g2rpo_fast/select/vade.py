"""Thompson sampling of prompts by how much their group would teach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from g2rpo_fast.bounds import Ge, Le
from g2rpo_fast.pieces import Chosen, Clock, Outcome, PromptStore, Selection
from g2rpo_fast.select.counts import sums
from g2rpo_fast.types import Prompt


@dataclass(frozen=True, kw_only=True)
class Vade(Selection):
    """p_i ~ Beta(alpha_i + 1, beta_i + 1); the prompts with the largest p_i (1 - p_i)^2 (at most at 1/3).

    After the step a prompt with r successes of G: alpha = decay alpha + r, beta = decay beta + G - r; all
    others: alpha and beta times `rest`. Counted are rollouts from the plain prompt, without guidance or hint.

    VADE (arXiv 2511.18902). Evidence: paper (the authors' figure, whose worked numbers imply the two factors;
    the first alpha and beta are not given there: 0 here, so that a prompt's first p is uniform).
    """

    use = "vade"
    decay: Annotated[float, Ge(0), Le(1)] = 0.2
    """What the past of a prompt counts when it is seen again."""
    rest: Annotated[float, Ge(0), Le(1)] = 0.999
    """What it counts after each step in which it is not."""

    def columns(self) -> dict[str, float]:
        return {"alpha": 0.0, "beta": 0.0}

    def choose(
        self, prompts: Sequence[Prompt], store: PromptStore, clock: Clock, *, count: int, size: int
    ) -> list[Chosen]:
        alpha_P, beta_P = store.columns["alpha"], store.columns["beta"]
        p_P = clock.generator(self.use).beta(alpha_P + 1, beta_P + 1)
        best = np.argsort(-(p_P * (1 - p_P) ** 2), kind="stable")
        return [Chosen(prompt=prompts[best[i % len(best)]], size=size) for i in range(count)]

    def learned(self, store: PromptStore, outcome: Outcome) -> PromptStore:
        alpha_P, beta_P = store.columns["alpha"], store.columns["beta"]
        seen_P, right_P = sums(store, outcome.scored, outcome.scored.rewards.accuracy_R)
        kept_P = np.where(seen_P > 0, self.decay, self.rest)
        return store.put(alpha=kept_P * alpha_P + right_P, beta=kept_P * beta_P + seen_P - right_P)
