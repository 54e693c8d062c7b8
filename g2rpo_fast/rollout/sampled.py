"""A batch that was sampled and is not trained on yet, and what a checkpoint keeps of it.

Dimension key: R rollouts, N sampled tokens end to end, L layers with experts, K experts of one token. A
trailing 1 is "plus one".
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from g2rpo_fast.types import SOURCES, Ask, Completion, Prompt, Rewards


@dataclass(frozen=True, kw_only=True)
class SampledBatch:
    """The rows of one step, round by round, and what they were asked for with."""

    asks: list[Ask]
    completions: list[Completion]
    """One for each ask."""
    num_prompts: int
    """Prompts that were taken from the data's order for it."""
    notes: Mapping[str, float]
    """Metrics of what asked, as of then: the guidance controller's length."""
    rewards: Rewards | None = None
    """Of the first rows, where a later round needed them. Not in a checkpoint: they can be had again."""

    def plus(
        self, asks: Sequence[Ask], completions: Sequence[Completion], *, num_prompts: int
    ) -> SampledBatch:
        """With another round's rows; `num_prompts` were then taken in all."""
        return replace(
            self,
            asks=[*self.asks, *asks],
            completions=[*self.completions, *completions],
            num_prompts=num_prompts,
        )

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Flat arrays, from which `from_arrays` makes the same batch."""
        done, asks = self.completions, self.asks
        told = {
            "num_prompts": self.num_prompts,
            "notes": dict(self.notes),
            "prompts": [ask.prompt.id for ask in asks],
            "group": [ask.group for ask in asks],
            "member": [ask.member for ask in asks],
            "round": [ask.round for ask in asks],
            "max_tokens": [ask.max_tokens for ask in asks],
            "given_in_loss": [ask.given_in_loss for ask in asks],
            "hint_level": [ask.hint_level for ask in asks],
            "source": [SOURCES.index(ask.source) for ask in asks],
        }
        return {
            "told": np.frombuffer(json.dumps(told).encode(), np.uint8),
            **_ragged("given", [ask.given_ids for ask in asks]),
            **_ragged("sampling_prompt", [ask.sampling_prompt_ids for ask in asks]),
            **_ragged("training_prompt", [ask.training_prompt_ids for ask in asks]),
            **_ragged("token", [c.token_ids for c in done]),
            "logp_N": np.concatenate([np.zeros(0, np.float32), *(c.logp for c in done)]),
            "version_N": np.concatenate([np.zeros(0, np.int32), *map(_versions, done)]),
            "version_R": np.asarray([c.weight_version for c in done], np.int64),
            "stopped_R": np.asarray([c.finish_reason == "stop" for c in done], np.bool_),
            **_experts(done),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], prompts: Sequence[Prompt]) -> SampledBatch | None:
        """None: of an earlier version, or a prompt of it is no longer among `prompts`: sample it again."""
        if "told" not in arrays:
            return None
        told = json.loads(arrays["told"].tobytes())
        by_id = {prompt.id: prompt for prompt in prompts}
        if not by_id.keys() >= set(told["prompts"]):
            return None
        return cls(
            asks=_asks(told, arrays, by_id),
            completions=_completions(arrays),
            num_prompts=told["num_prompts"],
            notes=told["notes"],
        )


def _asks(
    told: Mapping[str, Any], arrays: Mapping[str, np.ndarray], prompts: Mapping[str, Prompt]
) -> list[Ask]:
    given, sampling, training = (_rows(arrays, n) for n in ("given", "sampling_prompt", "training_prompt"))
    return [
        Ask(
            prompt=prompts[id_],
            group=told["group"][r],
            member=told["member"][r],
            round=told["round"][r],
            sampling_prompt_ids=sampling[r],
            training_prompt_ids=training[r],
            given_ids=given[r],
            given_in_loss=told["given_in_loss"][r],
            max_tokens=told["max_tokens"][r],
            hint_level=told["hint_level"][r],
            source=SOURCES[told["source"][r]],
        )
        for r, id_ in enumerate(told["prompts"])
    ]


def _completions(arrays: Mapping[str, np.ndarray]) -> list[Completion]:
    ptr, expert_NLK = arrays["token_ptr_R1"], arrays.get("expert_NLK")
    return [
        Completion(
            token_ids=token_ids,
            logp=arrays["logp_N"][ptr[r] : ptr[r + 1]],
            finish_reason="stop" if arrays["stopped_R"][r] else "length",
            weight_version=int(arrays["version_R"][r]),
            token_versions=arrays["version_N"][ptr[r] : ptr[r + 1]],
            experts=None if expert_NLK is None else expert_NLK[ptr[r] : ptr[r + 1]],
        )
        for r, token_ids in enumerate(_rows(arrays, "token"))
    ]


def _experts(completions: Sequence[Completion]) -> dict[str, np.ndarray]:
    """Of all tokens, where they are recorded."""
    found = [c.experts for c in completions if c.experts is not None]
    return {"expert_NLK": np.concatenate(found)} if found else {}


def _ragged(name: str, rows: Sequence[tuple[int, ...]]) -> dict[str, np.ndarray]:
    return {
        f"{name}_ptr_R1": np.cumsum([0, *map(len, rows)], dtype=np.int64),
        f"{name}_N": np.asarray([i for row in rows for i in row], np.int32),
    }


def _rows(arrays: Mapping[str, np.ndarray], name: str) -> list[tuple[int, ...]]:
    ptr, ids = arrays[f"{name}_ptr_R1"], arrays[f"{name}_N"].tolist()
    return [tuple(ids[start:stop]) for start, stop in pairwise(ptr)]


def _versions(completion: Completion) -> np.ndarray:
    if completion.token_versions is not None:
        return completion.token_versions.astype(np.int32)
    return np.full(len(completion.token_ids), completion.weight_version, np.int32)
