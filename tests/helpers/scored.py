"""Rows with given rewards, as credit pieces see them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from g2rpo_fast.config import Config
from g2rpo_fast.guidance import GuidanceConfig
from g2rpo_fast.pieces import Clock, Outcome, PromptStore, Scored
from g2rpo_fast.recipe import Recipe, recipe_of
from g2rpo_fast.types import Prompt, Rewards, Rollout

NO_STORE = PromptStore(ids=(), columns={})
CLOCK = Clock(step=3, total_steps=10, seed=0)


def row_of(
    group: int, member: int, response_ids: Sequence[int], prompt_ids: Sequence[int] = (1, 2)
) -> Rollout:
    """A row all of whose tokens were sampled."""
    length = len(response_ids)
    prompt = Prompt(id=f"train:{group}", text="q", token_ids=tuple(prompt_ids), answer="72")
    return Rollout(
        prompt=prompt,
        group=group,
        member=member,
        training_prompt_ids=prompt.token_ids,
        sampling_prompt_ids=prompt.token_ids,
        response_ids=tuple(response_ids),
        guidance_len=0,
        loss_mask=np.ones(length, dtype=np.bool_),
        rollout_logp=np.full(length, -0.5, dtype=np.float32),
        text=" ".join(map(str, response_ids)),
        finish_reason="stop",
        weight_version=0,
    )


def rewards_of(reward_RK: Sequence[Sequence[float]] | np.ndarray, weights: Sequence[float] = ()) -> Rewards:
    """Channels and their weighted sum; NaN = does not apply."""
    reward_RK = np.asarray(reward_RK, np.float64)
    weight_K = np.asarray(weights or [1.0] * reward_RK.shape[1])
    return Rewards(
        channels=tuple(f"channel {k}" for k in range(reward_RK.shape[1])),
        reward_RK=reward_RK,
        weight_K=weight_K,
        total_R=np.nansum(reward_RK * weight_K, axis=1),
        accuracy_R=(reward_RK[:, 0] > 0).astype(np.float64),
    )


def scored_of(
    reward_RK: Sequence[Sequence[float]] | np.ndarray,
    groups: Sequence[int],
    *,
    weights: Sequence[float] = (),
    lengths: Sequence[int] | None = None,
) -> Scored:
    """Rows of `groups`, each of two tokens or of `lengths`."""
    lengths = lengths or [2] * len(groups)
    return Scored(
        rollouts=tuple(
            row_of(group, member, [3] * length)
            for member, (group, length) in enumerate(zip(groups, lengths, strict=True))
        ),
        rewards=rewards_of(reward_RK, weights),
        clock=CLOCK,
    )


def outcome_of(scored: Scored, stats: Mapping[str, float] | None = None) -> Outcome:
    """Of a step that trained on all its rows, each of whose advantages is its reward."""
    return Outcome(scored=scored, settled=scored, advantage_R=scored.rewards.total_R, stats=stats or {})


def recipe_with(**chains: Any) -> Recipe:
    """The default pieces of a run, without guidance, and these."""
    default = recipe_of(Config(guidance=GuidanceConfig(enabled=False)))
    return replace(default, **chains)
