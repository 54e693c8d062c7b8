"""What is kept of each prompt of the training data, from step to step and in the checkpoint.

Dimension key: P prompts of the data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from g2rpo_fast.types import Doubles, Prompt


@dataclass(frozen=True, kw_only=True)
class PromptStore:
    """Columns over all prompts of the training data, kept from step to step."""

    ids: tuple[str, ...]
    columns: Mapping[str, Doubles]
    """Name -> [P] float64."""

    @classmethod
    def of(cls, ids: Sequence[str], first: Mapping[str, float]) -> PromptStore:
        """Before the first step: every prompt has the first value of each column."""
        return cls(ids=tuple(ids), columns={name: np.full(len(ids), v) for name, v in first.items()})

    @cached_property
    def place(self) -> Mapping[str, int]:
        """Prompt id -> its place in the columns."""
        return {id_: place for place, id_ in enumerate(self.ids)}

    def places(self, prompts: Sequence[Prompt]) -> np.ndarray:
        """[len(prompts)] int64, each prompt's place in the columns."""
        return np.asarray([self.place[prompt.id] for prompt in prompts], np.int64)

    def put(self, **columns: Doubles) -> PromptStore:
        """The store with some columns replaced."""
        return replace(self, columns={**self.columns, **columns})

    def to_arrays(self) -> dict[str, np.ndarray]:
        """For a checkpoint; nothing where there is no column."""
        if not self.columns:
            return {}
        named = {f"store.{name}": column for name, column in self.columns.items()}
        return {"store_ids": np.frombuffer(json.dumps(self.ids).encode(), np.uint8), **named}

    def restored(self, arrays: Mapping[str, np.ndarray]) -> PromptStore:
        """What `to_arrays` kept, for these prompts and columns; first values where it has none."""
        if "store_ids" not in arrays:
            return self
        kept = {id_: place for place, id_ in enumerate(json.loads(arrays["store_ids"].tobytes()))}
        here = np.asarray([place for place, id_ in enumerate(self.ids) if id_ in kept], np.int64)
        there = np.asarray([kept[self.ids[place]] for place in here], np.int64)
        columns = {name: column.copy() for name, column in self.columns.items()}
        for name in columns.keys() & {key.removeprefix("store.") for key in arrays}:
            columns[name][here] = arrays[f"store.{name}"][there]
        return replace(self, columns=columns)
