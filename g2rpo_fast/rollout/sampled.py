"""A batch that was sampled and is not trained on yet, and what a checkpoint keeps of it.

Prompts are not kept: they follow from the data's cursor. Dimension key: P prompts, R rollouts, N sampled
tokens end to end. A trailing 1 is "plus one".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from g2rpo_fast.types import Completion


@dataclass(frozen=True, kw_only=True)
class SampledBatch:
    """The completions of one step, group by group, and the guidance that they were sampled after."""

    guidance_lengths: list[list[int]]
    """For each prompt, one per member."""
    completions: list[Completion]
    guidance_length: float
    """The controller's length at that time."""

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Flat arrays, from which `from_arrays` makes the same batch."""
        done = self.completions
        none = [np.zeros(0, np.int32)]
        return {
            "group_size_P": np.asarray([len(lengths) for lengths in self.guidance_lengths], np.int64),
            "guidance_R": np.asarray([n for lengths in self.guidance_lengths for n in lengths], np.int32),
            "ptr_R1": np.cumsum([0, *(len(c.token_ids) for c in done)], dtype=np.int64),
            "token_N": np.asarray([i for c in done for i in c.token_ids], np.int32),
            "logp_N": np.concatenate([np.zeros(0, np.float32), *(c.logp for c in done)]),
            "version_N": np.concatenate(none + [_versions(c) for c in done]),
            "version_R": np.asarray([c.weight_version for c in done], np.int64),
            "guidance_length": np.asarray([self.guidance_length], np.float64),
            "stopped_R": np.asarray([c.finish_reason == "stop" for c in done], np.bool_),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> SampledBatch:
        ptr, guidance_R = arrays["ptr_R1"], arrays["guidance_R"]
        groups = np.split(guidance_R, np.cumsum(arrays["group_size_P"])[:-1])
        return cls(
            guidance_length=float(arrays["guidance_length"][0]),
            guidance_lengths=[lengths.tolist() for lengths in groups],
            completions=[
                Completion(
                    token_ids=tuple(arrays["token_N"][ptr[r] : ptr[r + 1]].tolist()),
                    logp=arrays["logp_N"][ptr[r] : ptr[r + 1]],
                    finish_reason="stop" if arrays["stopped_R"][r] else "length",
                    weight_version=int(arrays["version_R"][r]),
                    token_versions=arrays["version_N"][ptr[r] : ptr[r + 1]],
                )
                for r in range(len(ptr) - 1)
            ],
        )


def _versions(completion: Completion) -> np.ndarray:
    if completion.token_versions is not None:
        return completion.token_versions.astype(np.int32)
    return np.full(len(completion.token_ids), completion.weight_version, np.int32)
