"""Settings of the rollout stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from g2rpo_fast.types import Sampling


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """How completions are sampled for training."""

    engine: Literal["local", "vllm"] = "local"
    """local: in this process, on the trainer's own weights. vllm: vLLM in a process of its own (vllm.*)."""
    group_size: int = 8
    """Rollouts of each prompt (G)."""
    max_tokens: int = 512
    """Most tokens of a response, its guidance included."""
    temperature: float = 1.0
    """Logits are divided by it; 0 = greedy."""
    top_p: float = 1.0
    """Sample from the fewest tokens whose probabilities sum to at least this; 1 = off."""
    top_k: int = 0
    """Sample from the k most likely tokens; 0 = off."""
    stop_strings: tuple[str, ...] = ()
    """A response ends when its text contains one of these."""
    max_rows: int = 512
    """Most rows decoded at once; more are done in waves."""

    def __post_init__(self) -> None:
        least = {"group_size": 1, "max_tokens": 1, "max_rows": 1, "top_k": 0}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"rollout.{name}: wanted at least {bound}, got {getattr(self, name)}")
        if self.temperature < 0:
            raise ValueError(f"rollout.temperature: wanted 0 (greedy) or more, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"rollout.top_p: wanted 0 < top_p <= 1, got {self.top_p}")
        if "" in self.stop_strings:
            raise ValueError("rollout.stop_strings: wanted non-empty strings, got an empty one")

    def sampling(self, stop_token_ids: tuple[int, ...]) -> Sampling:
        """What an engine is asked for, with the tokenizer's stop tokens."""
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            stop_token_ids=stop_token_ids,
            stop_strings=self.stop_strings,
        )
