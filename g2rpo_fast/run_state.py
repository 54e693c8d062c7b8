"""Where a run stands: the state that moves from step to step, and the last that the weights agree with."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch

from g2rpo_fast.checkpoint import random_state
from g2rpo_fast.pieces import Memory
from g2rpo_fast.prompt_store import PromptStore
from g2rpo_fast.rollout.sampled import SampledBatch


@dataclass(frozen=True, kw_only=True)
class TrainState:
    """All that moves from step to step beside weights and optimiser: in the checkpoint JSON and arrays."""

    step: int = 0
    """Steps done."""
    cursor: int = 0
    """Prompts taken since the start, over all epochs."""
    memory: Mapping[str, Memory] = field(default_factory=dict)
    """Of each piece that keeps something, by its name."""
    store: PromptStore = field(compare=False)
    """What is kept of each prompt."""
    prompt_ids: tuple[str, ...] = ()
    """Of the last step."""
    weight_version: int = 0
    bad_steps: int = 0
    """Updates (passes over a batch) in a row that were skipped."""
    signal_steps: int | None = 0
    """Steps with a group whose rewards differ; None = not counted from the start (an older version's run)."""
    best_accuracy: float | None = None
    best_step: int | None = None
    unlogged: Mapping[str, float] | None = None
    """Metrics so far of `step`, whose update is done but not its evaluation and record; None = all is."""
    unlogged_rows: Sequence[Mapping[str, Any]] = ()
    """Of samples.jsonl, of the same step."""

    def to_dict(self) -> dict[str, Any]:
        """JSON: all but the store."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "store"}

    def restored(self, values: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> TrainState:
        """What a checkpoint holds, of `to_dict` and of the store; this is a run's first state.

        An earlier version's has no count of steps with a signal, and knows one memory, the guidance's."""
        known = {f.name for f in fields(self)}
        kept = {"signal_steps": None, **{k: v for k, v in values.items() if k in known}}
        memory = values.get("memory", {"trace_prefix": values.get("guidance")})
        return TrainState(
            **{
                **kept,
                "memory": {**self.memory, **memory},
                "prompt_ids": tuple(values.get("prompt_ids", ())),
                "unlogged_rows": tuple(values.get("unlogged_rows", ())),
                "store": self.store.restored(arrays),
            }
        )


class LastState:
    """What a checkpoint written now would hold, and whether one may be written.

    From the first optimiser step of an update until `put` the weights belong to no state.
    """

    def __init__(
        self, state: TrainState, sampled: SampledBatch | None, optimizer: torch.optim.Optimizer
    ) -> None:
        self.put(state, sampled)
        self.saved_s = time.monotonic()
        """Of the last checkpoint, or of the start."""
        optimizer.register_step_pre_hook(self._moves)

    def put(self, state: TrainState, sampled: SampledBatch | None = None) -> None:
        """The weights are those of `state`; `sampled`: the batch of the step after it."""
        self.state, self.sampled = state, sampled
        self.random = random_state()
        self.half_updated = False

    def _moves(self, *_: object) -> None:
        self.half_updated = True
