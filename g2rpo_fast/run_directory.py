"""A run's directory: what is in it, and whether it may be continued with a given configuration.

config.json              the configuration, resolved
metrics.jsonl            one record a step
vllm.log                 output of the rollout engine's process
guidance_profile.json    success against the share of the trace given, before training
checkpoints/step_*/      whole or absent
embedded/                the embedded default's model and data
model/                   the trained model, in transformers' format
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from g2rpo_fast.config import Config
from g2rpo_fast.cpu import free_threads

MAY_CHANGE = (
    "run.dir",
    "run.steps",
    "checkpoint.",
    "evaluate.",
    "vllm.start_timeout_s",
    "vllm.stall_s",
    "vllm.sync_timeout_s",
    "vllm.gpu_memory_utilization",
    "vllm.kv_cache_mib",
    "vllm.checksum",
)
"""Keys in which a continuation may differ from the run that it continues."""


def open_directory(config: Config) -> tuple[Path, Config]:
    """Makes the run directory, or finds the run in it.

    Returns the directory and the configuration with what "auto" meant when the run began: a continuation uses
    as many threads as its run did, or sums would round differently, and its seed of the data's order.

    Raises:
        ValueError: the directory holds a run with other settings; names each key, wanted and got.
    """
    directory = Path(config.run.dir or _new_name())
    resolved = _with_run(config, dir=str(directory))
    resolved = dataclasses.replace(resolved, data=dataclasses.replace(config.data, seed=config.order_seed))
    file = directory / "config.json"
    if file.exists():
        stored = json.loads(file.read_text())
        if config.run.threads is None:
            resolved = _with_run(resolved, threads=stored["run"]["threads"])
        _refuse_other_settings(stored, dataclasses.asdict(resolved), directory)
    elif config.run.threads is None:
        resolved = _with_run(resolved, threads=free_threads())
    directory.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(dataclasses.asdict(resolved), indent=1))
    os.replace(temporary, file)
    return directory, resolved


def _with_run(config: Config, **values: Any) -> Config:
    return dataclasses.replace(config, run=dataclasses.replace(config.run, **values))


def _new_name() -> Path:
    stem = Path("runs") / time.strftime("%Y%m%d-%H%M%S")
    names = [stem, *(stem.with_name(f"{stem.name}-{i}") for i in range(2, 100))]
    return next(name for name in names if not name.exists())


def _refuse_other_settings(stored: Mapping[str, Any], asked: Mapping[str, Any], directory: Path) -> None:
    then, now = _flat(stored), _flat(json.loads(json.dumps(asked)))
    changed = [
        f"{key}: wanted {then.get(key)!r}, got {now.get(key)!r}"
        for key in sorted({*then, *now})
        if then.get(key) != now.get(key) and not key.startswith(MAY_CHANGE)
    ]
    if changed:
        raise ValueError(
            f"run.dir: {directory} holds a run with other settings ({'; '.join(changed)}). "
            f"Give these settings to continue it, or another run.dir to begin anew"
        )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
