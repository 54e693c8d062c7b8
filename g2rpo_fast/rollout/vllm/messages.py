"""What trainer and engine process tell each other, beside plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from g2rpo_fast.types import Completion


@dataclass(frozen=True, kw_only=True)
class Launch:
    """The first message: what to build."""

    model_dir: str
    """config.json and tokenizer; removed once they are read."""
    llm: dict[str, Any]
    """Arguments of `vllm.LLM`."""


@dataclass(frozen=True, kw_only=True)
class Adapters:
    """LoRA for the engine to compute beside its weights."""

    path: str
    """Of the file with the tensors, in the safetensors format and under PEFT's names."""
    config: dict[str, Any]
    """Contents of adapter_config.json."""
    num_maps: int


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The answer to `poll`."""

    finished: dict[int, Completion]
    tokens: int
    """Sampled since the last poll."""
    busy_s: float
