"""Where adapters and the model that they belong to lie. Imports no PyTorch."""

from __future__ import annotations

import json
from pathlib import Path

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
BASE_KEPT = "adapter_base.json"
"""Ours: what the base was kept in when these adapters were trained."""


def is_adapter(path: str) -> bool:
    """Whether a directory holds adapters in the place of a model."""
    return (Path(path) / CONFIG).is_file()


def whole_base_of(path: str) -> str:
    """`base_of`, and of that again where it is adapters on another: a whole model."""
    while is_adapter(path):
        path = base_of(path)
    return path


def base_of(path: str) -> str:
    """The model, a directory or a hub id, that `path` is, or that the adapters in it belong to.

    Raises:
        ValueError: adapters that do not name it, or a directory that is not there.
    """
    if not is_adapter(path):
        return path
    file = Path(path) / CONFIG
    try:
        base = json.loads(file.read_bytes())["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError):
        base = None
    if not base or not isinstance(base, str):
        raise ValueError(f"model.path: wanted base_model_name_or_path in {file}, got none")
    if base.startswith(("/", ".", "~")) and not Path(base).is_dir():
        raise ValueError(
            f"model.path: wanted the model that the adapters in {path} belong to, got no directory {base} "
            f"(base_model_name_or_path in {CONFIG})"
        )
    return base
