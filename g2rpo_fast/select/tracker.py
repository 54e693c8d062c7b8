"""One rollout a prompt: a tracker of each prompt's success is its baseline, and says whom to ask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from g2rpo_fast.bounds import Ge, Gt, Lt
from g2rpo_fast.pieces import Chosen, Clock, Outcome, PromptStore, Selection
from g2rpo_fast.select.counts import sums
from g2rpo_fast.types import Doubles, Prompt

RIGHT, WRONG = "tracked_right", "tracked_wrong"
"""Columns: a and b."""


def tracked(store: PromptStore) -> Doubles:
    """[P] v = a / (a + b)."""
    right_P, wrong_P = store.columns[RIGHT], store.columns[WRONG]
    return right_P / (right_P + wrong_P)


@dataclass(frozen=True, kw_only=True)
class Tracker(Selection):
    """All rollouts of a step from prompts of their own, drawn without replacement with the weight
    sqrt(v (1 - v)) + explore, v = a / (a + b). After the step, for those drawn: a <- rho a + R, b <- rho b +
    1 - R; a = b = 1/2 at first. Rewards are in [0, 1], the sum of a row's channels.

    SPO, single-stream (arXiv 2509.13232). Evidence: code; its form with a constant rho and without offline
    rollouts (with 8 of these a prompt it starts from 8 (S + 0.5) / 9). Fewer prompts than rollouts are taken
    again, in the order drawn. Counted are rollouts from the plain prompt, without guidance or hint.
    """

    use = "tracker"
    rho: Annotated[float, Ge(0), Lt(1)] = 0.875
    """What the past of a prompt counts when it is seen again: 1 / (1 - rho) rollouts are remembered."""
    explore: Annotated[float, Gt(0)] = 0.05
    """Added to every prompt's weight: what is settled is still asked now and then."""

    def columns(self) -> dict[str, float]:
        return {RIGHT: 0.5, WRONG: 0.5}

    def choose(
        self, prompts: Sequence[Prompt], store: PromptStore, clock: Clock, *, count: int, size: int
    ) -> list[Chosen]:
        v_P = tracked(store)
        weight_P = np.sqrt(v_P * (1 - v_P)) + self.explore
        # The first of exponential clocks of these rates to ring, then the next: a draw without replacement.
        drawn = np.argsort(clock.generator(self.use).exponential(size=len(v_P)) / weight_P, kind="stable")
        return [Chosen(prompt=prompts[drawn[i % len(drawn)]], size=1) for i in range(count * size)]

    def learned(self, store: PromptStore, outcome: Outcome) -> PromptStore:
        rewards = outcome.scored.rewards
        judged_R = ~np.isnan(rewards.reward_RK).all(axis=1)
        reward_R = np.where(judged_R, np.clip(rewards.total_R, 0.0, 1.0), np.nan)
        seen_P, sum_P = sums(store, outcome.scored, reward_R)
        rho_P = np.where(seen_P > 0, self.rho, 1.0)
        return store.put(
            **{
                RIGHT: rho_P * store.columns[RIGHT] + sum_P,
                WRONG: rho_P * store.columns[WRONG] + seen_P - sum_P,
            }
        )
