"""Settings of the rollout stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

from g2rpo_fast.bounds import check_fields
from g2rpo_fast.types import Sampling


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """How completions are sampled for training."""

    engine: Literal["local", "vllm"] = "local"
    """local: in this process, on the trainer's own weights. vllm: vLLM in a process of its own (vllm.*)."""
    group_size: Annotated[int, Ge(1)] = 8
    """Rollouts of each prompt (G)."""
    max_tokens: Annotated[int, Ge(1)] = 512
    """Most tokens of a response, its guidance included."""
    temperature: Annotated[float, Ge(0)] = 1.0
    """Logits are divided by it; 0 = greedy."""
    top_p: Annotated[float, Gt(0), Le(1)] = 1.0
    """Sample from the fewest tokens whose probabilities sum to at least this; 1 = off."""
    top_k: Annotated[int, Ge(0)] = 0
    """Sample from the k most likely tokens; 0 = off."""
    stop_strings: tuple[str, ...] = ()
    """A response ends when its text contains one of these."""
    max_rows: Annotated[int, Ge(1)] = 512
    """Most rows decoded at once; more are done in waves."""

    def __post_init__(self) -> None:
        check_fields(self, "rollout")
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
