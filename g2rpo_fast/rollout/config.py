"""Settings of the rollout stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from g2rpo_fast.bounds import Ge, Gt, Le, check_fields
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
    """Logits are divided by it; above 0 (greedy groups teach nothing)."""
    top_p: Annotated[float, Gt(0), Le(1)] = 1.0
    """Sample from the fewest tokens whose probabilities sum to at least this; 1 = off. The loss reads the
    whole distribution at that temperature, where tokens that are never drawn have mass: a biased gradient.
    Importance weights, old_logp = "rollout" and run.ahead are refused, and `mismatch/` is not measured."""
    top_k: Annotated[int, Ge(0)] = 0
    """Sample from the k most likely tokens; 0 = off. The loss: as with top_p."""
    stop_strings: tuple[str, ...] = ()
    """A response ends when its text contains one of these; special tokens may be named. It may begin inside
    guidance, but a sampled token completes it. Rewards read the text up to it."""
    stop_token_ids: tuple[Annotated[int, Ge(0)], ...] = ()
    """Tokens that end a response, beside the end tokens that the tokenizer, generation_config.json and
    config.json of the model name. Rewards read the text up to it."""
    max_rows: Annotated[int, Ge(1)] = 512
    """Most rows decoded at once; more are done in waves."""
    cuda_graph: bool = True
    """local engine on CUDA, models of type Llama, Mistral, Qwen2 and Qwen3 with plain modules: a decoding
    step is one CUDA graph, the same up to rounding. false = kernel by kernel, and less memory at once."""

    record_routing: bool = False
    """local engine, mixtures of experts: keep which experts each sampled token went through, and tell of how
    many the update's own choice is another (mismatch/routing)."""

    def __post_init__(self) -> None:
        check_fields(self, "rollout")
        if self.record_routing and self.engine != "local":
            raise ValueError(
                f"rollout.record_routing: wanted false with rollout.engine = {self.engine} (vLLM tells of "
                "experts from its V2 model runner alone, which has no CPU and is not used here), got true"
            )
        if "" in self.stop_strings:
            raise ValueError("rollout.stop_strings: wanted non-empty strings, got an empty one")

    @property
    def truncated(self) -> bool:
        """Whether the engine's log-probabilities are of a truncated distribution, the loss's of the whole."""
        return self.top_p < 1 or self.top_k > 0

    def sampling(self, stop_token_ids: tuple[int, ...]) -> Sampling:
        """What an engine is asked for, with all stop tokens of the run."""
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            stop_token_ids=stop_token_ids,
            stop_strings=self.stop_strings,
        )
