"""What updating costs: the run's own update, on as many of a step's rows as time allows.

    seconds = fixed_s + positions * position_s

The optimiser's steps are in `fixed_s` where weights may move, and left out where they may not.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from g2rpo_fast.assemble import Parts
from g2rpo_fast.forecast.lengths import shortened
from g2rpo_fast.gather import clock_of
from g2rpo_fast.pieces import Scored
from g2rpo_fast.run_state import TrainState
from g2rpo_fast.steps import Ready, ready
from g2rpo_fast.tree import TreeConfig, plan_trees
from g2rpo_fast.types import Ask, Completion, Rewards, Rollout, TreePlan

FIRST_TOKENS = 8
"""Of each response in the first, small update."""


@dataclass(frozen=True)
class UpdateCosts:
    """Seconds."""

    fixed_s: float
    position_s: float


class Still(torch.optim.Optimizer):
    """Moves nothing, and keeps nothing: gradients are taken and dropped."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__([p for p in model.parameters() if p.requires_grad], {})

    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Nothing."""


def made_up(parts: Parts, state: TrainState, rollouts: Sequence[Rollout]) -> Scored:
    """With rewards of which every group of two or more has both kinds: all of it goes through the update."""
    paid_R = np.array([float(rollout.member % 2 == 0) for rollout in rollouts])
    channels = parts.rewards.channels
    return Scored(
        rollouts=tuple(rollouts),
        rewards=Rewards(
            channels=channels,
            reward_RK=np.repeat(paid_R[:, None], len(channels), axis=1),
            weight_K=np.ones(len(channels)),
            total_R=paid_R * len(channels),
            accuracy_R=paid_R,
        ),
        clock=clock_of(parts, state),
        answer_of=parts.rewards.answer_of,
        texts_of=parts.sampler.texts_of,
    )


def plans_of(parts: Parts, given: Ready) -> list[list[TreePlan]]:
    """The micro-batches of each optimiser step."""
    return _planned(given, parts.learner.tree)


def shared_positions(parts: Parts, given: Ready) -> int | None:
    """Positions of prefix trees, where the run has unshared rows in their place."""
    if parts.learner.tree.shares:
        return None
    return positions_of(_planned(given, parts.config.tree))


def _planned(given: Ready, tree: TreeConfig) -> list[list[TreePlan]]:
    return [
        plan_trees(batch.sequences, token_budget=tree.token_budget, min_saved=tree.min_saved)
        for batch in given.batches
    ]


def positions_of(plans: Sequence[Sequence[TreePlan]]) -> int:
    return sum(len(plan.token_S) for of_step in plans for plan in of_step)


def measure_update(
    parts: Parts,
    state: TrainState,
    asks: Sequence[Ask],
    completions: Sequence[Completion],
    *,
    seconds: float,
) -> UpdateCosts:
    """Two updates on made-up rewards: a small one, and the largest that is affordable.

    Args:
        completions: of all asks.
    """
    group_R = np.array([ask.group for ask in asks])
    first = int((group_R == group_R[0]).sum())

    def run(rows: int, most: int) -> tuple[int, float]:
        short = shortened(completions[:rows], most)
        given = ready(parts, state, made_up(parts, state, parts.sampler.rollouts(asks[:rows], short)))
        began = time.perf_counter()
        given.learner.update(given.batches, lr=parts.config.optim.lr, scored=given.chosen)
        return positions_of(plans_of(parts, given)), time.perf_counter() - began

    run(first, FIRST_TOKENS)  # pays for what is done once
    few, few_s = run(first, FIRST_TOKENS)
    affordable = (seconds - few_s) / max(few_s / max(few, 1), 1e-9)
    whole = positions_of(
        plans_of(parts, ready(parts, state, made_up(parts, state, parts.sampler.rollouts(asks, completions))))
    )
    ends = np.flatnonzero(np.append(np.diff(group_R) != 0, True)) + 1
    count = max(1, int(len(ends) * min(1.0, affordable / max(whole, 1))))
    longest = max(len(completion.token_ids) for completion in completions)
    share = affordable / max(whole / len(ends), 1)
    most = longest if share >= 1 else max(2 * FIRST_TOKENS, int(longest * share))
    many, many_s = run(int(ends[count - 1]), most)
    if many <= few:
        return UpdateCosts(0.0, many_s / max(many, 1))
    position_s = max((many_s - few_s) / (many - few), 0.0)
    return UpdateCosts(max(many_s - many * position_s, 0.0), position_s)


def still(parts: Parts) -> Parts:
    """With a learner that leaves the weights as they are."""
    return replace(parts, learner=replace(parts.learner, optimizer=Still(parts.learner.model)))
