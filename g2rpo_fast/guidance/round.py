"""Guidance as a round of asks: the first members of a group start from the first l tokens of the trace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from g2rpo_fast.guidance.config import GuidanceConfig
from g2rpo_fast.guidance.controller import advance, controller_accuracy, initial_state, state_for
from g2rpo_fast.guidance.lengths import guided_lengths
from g2rpo_fast.guidance.state import GuidanceState
from g2rpo_fast.pieces import Clock, Memory, Outcome, Round
from g2rpo_fast.types import Ask


@dataclass(frozen=True)
class TracePrefix(Round):
    """o_i = z[:l] + y_i, y_i ~ pi(. | q, z[:l]) for the guided members (G2RPO-A, arXiv 2508.13023; released
    code read). Its memory is the length controller's state."""

    use = "trace_prefix"
    config: GuidanceConfig

    def __post_init__(self) -> None:
        """The section checked itself."""

    def memory(self) -> Memory:
        return initial_state(self.config).to_dict()

    def first(self, asks: Sequence[Ask], memory: Memory, clock: Clock) -> list[Ask]:
        groups: dict[int, list[Ask]] = {}
        for ask in asks:
            groups.setdefault(ask.group, []).append(ask)
        lengths = guided_lengths(
            self.config,
            self._state(memory, clock),
            trace_lens=[len(members[0].prompt.trace_ids) for members in groups.values()],
            group_sizes=[len(members) for members in groups.values()],
            max_tokens=asks[0].max_tokens,
        )
        return [
            replace(ask, given_ids=ask.prompt.trace_ids[:length], given_in_loss=self.config.in_loss)
            for members, its_lengths in zip(groups.values(), lengths, strict=True)
            for ask, length in zip(members, its_lengths, strict=True)
        ]

    def observe(self, memory: Memory, outcome: Outcome) -> Memory:
        """After the accuracies of the rows that the first round asked for."""
        scored = outcome.scored
        first_R = np.asarray([rollout.round == 0 for rollout in scored.rollouts])
        guided_R = np.asarray([rollout.guided for rollout in scored.rollouts])
        accuracy = controller_accuracy(self.config, scored.rewards.accuracy_R[first_R], guided_R[first_R])
        state = GuidanceState.from_dict(memory)
        return advance(self.config, state, accuracy, total_steps=scored.clock.total_steps).to_dict()

    def notes(self, memory: Memory, clock: Clock) -> dict[str, float]:
        return {"guidance/length": self._state(memory, clock).length}

    def _state(self, memory: Memory, clock: Clock) -> GuidanceState:
        state = GuidanceState.from_dict(memory)
        ahead = clock.step - state.step
        return state_for(self.config, state, ahead=ahead, total_steps=clock.total_steps)
