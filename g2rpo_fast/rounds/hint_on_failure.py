"""Prompts that nobody solved are asked again with a hint; what comes is trained on without it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from g2rpo_fast.bounds import Ge, Le
from g2rpo_fast.pieces import Memory, More, Round, Scored
from g2rpo_fast.types import Ask, Prompt, Rollout


@dataclass(frozen=True, kw_only=True)
class HintOnFailure(Round):
    """Groups whose success rate is at most `failed` are drawn once more from the prompt with its first hint,
    as groups of their own, off-policy rows of the plain prompt. Of all groups those stay whose success rate
    is above `failed` and below 1 - `failed`.

    Guide (arXiv 2506.13923). Evidence: code. A step of failures takes up to twice the rollouts.
    """

    use = "hint_on_failure"
    repeats = True
    hints = True
    failed: Annotated[float, Ge(0), Le(0.5)] = 0.001
    """Success rate up to which a group counts as failed."""

    def again(self, scored: Scored, memory: Memory, more: More) -> list[Ask]:
        if any(rollout.round for rollout in scored.rollouts):
            return []
        failures = [rows for rows, rate in _groups(scored) if rate <= self.failed]
        hinted = [rows for rows in failures if _hint(scored.rollouts[rows[0]].prompt)]
        return [
            _asked_with_hint(scored.rollouts[row], scored.num_groups + number, scored.clock.max_tokens)
            for number, rows in enumerate(hinted)
            for row in rows
        ]

    def settle(self, scored: Scored, memory: Memory) -> Scored:
        kept = [rows for rows, rate in _groups(scored) if self.failed < rate < 1 - self.failed]
        return scored.keep(sorted(row for rows in kept for row in rows))


def _groups(scored: Scored) -> list[tuple[list[int], float]]:
    """(rows, success rate) of each group that accuracy applies to."""
    accuracy_R, group_R = scored.rewards.accuracy_R, scored.group_R
    of_group = [np.flatnonzero(group_R == group) for group in np.unique(group_R)]
    judged = [rows for rows in of_group if not np.isnan(accuracy_R[rows]).all()]
    return [(rows.tolist(), float(np.nanmean(accuracy_R[rows]))) for rows in judged]


def _hint(prompt: Prompt) -> tuple[int, ...]:
    """The prompt with its first hint; () = it has none."""
    return prompt.hinted_ids[0] if prompt.hinted_ids else ()


def _asked_with_hint(rollout: Rollout, group: int, max_tokens: int) -> Ask:
    return Ask(
        prompt=rollout.prompt,
        group=group,
        member=rollout.member,
        sampling_prompt_ids=_hint(rollout.prompt),
        training_prompt_ids=rollout.prompt.token_ids,
        max_tokens=max_tokens,
        hint_level=1.0,
        source="off_policy",
    )
