"""Where a run stands: the state that moves from step to step, and the last that the weights agree with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from g2rpo_fast.checkpoint import random_state
from g2rpo_fast.guidance import GuidanceState
from g2rpo_fast.rollout.sampled import SampledBatch


@dataclass(frozen=True, kw_only=True)
class TrainState:
    """All that moves from step to step beside weights and optimiser: JSON in the checkpoint."""

    step: int = 0
    """Steps done."""
    cursor: int = 0
    """Prompts trained on since the start, over all epochs."""
    guidance: GuidanceState
    weight_version: int = 0
    bad_steps: int = 0
    """Updates (passes over a batch) in a row that were skipped."""
    signal_steps: int | None = 0
    """Steps with a group whose rewards differ; None = not counted from the start (an older version's run)."""
    best_accuracy: float | None = None
    best_step: int | None = None
    unlogged: Mapping[str, float] | None = None
    """Metrics so far of `step`, whose update is done but not its evaluation and record; None = all is."""

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainState:
        uncounted = {"signal_steps": None} if "signal_steps" not in values else {}
        return cls(**{**values, **uncounted, "guidance": GuidanceState.from_dict(values["guidance"])})


class LastState:
    """What a checkpoint written now would hold, and whether one may be written.

    From the first optimiser step of an update until `put` the weights belong to no state.
    """

    def __init__(
        self, state: TrainState, sampled: SampledBatch | None, optimizer: torch.optim.Optimizer
    ) -> None:
        self.put(state, sampled)
        optimizer.register_step_pre_hook(self._moves)

    def put(self, state: TrainState, sampled: SampledBatch | None = None) -> None:
        """The weights are those of `state`; `sampled`: the batch of the step after it."""
        self.state, self.sampled = state, sampled
        self.random = random_state()
        self.half_updated = False

    def _moves(self, *_: object) -> None:
        self.half_updated = True
