"""The settings that `eval` and `sample` begin with: a run's, or the defaults. Needs no PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from g2rpo_fast.config import Config, section_types
from g2rpo_fast.guidance import GuidanceConfig
from g2rpo_fast.model_source import ModelSource

USED = ("run", "model", "data", "rollout", "reward")
"""Sections of the configuration that are read."""

PLACES = ("path", "subset", "split", "order_column", "eval_path", "eval_split")
"""Keys of `[data]` that say where a run's rows are, and in which order it visited them."""


def starting_sections(source: ModelSource) -> tuple[dict[str, Any], list[str]]:
    """The sections as a run has them, else their defaults, and notes of what is otherwise here: all rows of a
    file are used, this process samples, and paths are those of the command line."""
    types = section_types()
    found = {name: types[name]() if source.run is None else source.run.section(name) for name in USED}
    notes = []
    if found["rollout"].engine != "local":
        notes.append(f"the run sampled by {found['rollout'].engine}; here the local engine does")
    changes: dict[str, dict[str, Any]] = {
        "run": {"dir": None},
        "model": {
            "path": None,
            "gradient_checkpointing": False,
            "checkpointed_layers": None,
            "offload_activations": False,
        },
        "data": {**dict.fromkeys(PLACES), "weights": (), "eval_rows": 0, "hint_columns": ()},
        "rollout": {"engine": "local"},
    }
    return {name: replace(section, **changes.get(name, {})) for name, section in found.items()}, notes


def config_of(sections: Mapping[str, Any]) -> Config:
    """The sections as a whole configuration. Temperature 0, which no training has, is 1 in it."""
    rollout = sections["rollout"]
    if rollout.engine != "local":
        raise ValueError(
            f"rollout.engine: wanted local (this command samples in its own process), got {rollout.engine}"
        )
    rollout = replace(rollout, temperature=rollout.temperature or 1.0)
    return Config(**dict(sections) | {"rollout": rollout, "guidance": GuidanceConfig(enabled=False)})
