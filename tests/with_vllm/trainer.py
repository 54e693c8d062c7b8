"""The trainer's side of the sync tests: tiny models, their arena, and what transformers says of samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from engine_child import EngineChild, Sample
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, Qwen3Config

from g2rpo_fast.rollout.sync import Arena, Manifest

CPU = torch.device("cpu")
PROMPT = list(range(3, 103))
"""100 tokens: three blocks of the prefix cache, and a rest."""


def config_of(*, tied: bool, **changes: Any) -> PretrainedConfig:
    """A vocabulary that vLLM pads (to 256) and weights large enough for sure tokens."""
    sizes = {
        "vocab_size": 250,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "intermediate_size": 96,
        "max_position_embeddings": 256,
        "initializer_range": 0.2,
    }
    config = Qwen3Config(**(sizes | changes), tie_word_embeddings=tied)
    config.architectures = ["Qwen3ForCausalLM"]
    return config


def model_of(config: PretrainedConfig, version: int) -> PreTrainedModel:
    """The weights that a trainer has at `version`, float32: unlike those of any other."""
    torch.manual_seed(version)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def write_config(config: PretrainedConfig, directory: Path) -> Path:
    """A model directory without weights."""
    config.save_pretrained(directory)
    return directory


@dataclass
class Trainer:
    """Owns the arena of one engine."""

    engines: EngineChild
    engine: str
    config: PretrainedConfig
    dtype: torch.dtype = torch.float32
    """Of the weights that are sent."""
    leave_out: tuple[str, ...] = ()
    """Endings of names that the manifest lacks."""
    arena: Arena = field(init=False)

    def __post_init__(self) -> None:
        named = list(self.named(model_of(self.config, 0)))
        self.arena = Arena.create(Manifest.of(named, self.dtype), kind="memfd", device=CPU)

    def named(self, model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
        return ((n, p) for n, p in model.named_parameters() if not n.endswith(self.leave_out or ("\0",)))

    def attach(self, rung: str = "auto") -> dict[str, Any]:
        return self.engines.rpc(self.engine, "g2rpo_attach", self.arena.address(), rung)

    def sync(self, version: int, *, checksum: bool = False, reset: bool = True) -> PreTrainedModel:
        """Sends the weights of `version`; the model that has them."""
        model = model_of(self.config, version)
        report = self.arena.pack(self.named(model), version, checksum=checksum)
        answer = self.engines.rpc(self.engine, "g2rpo_update", report.slot, version, checksum)
        assert answer["version"] == version
        assert report.slot == (version - 1) % 2
        if reset:
            self.engines.reset(self.engine)
        return model

    def samples(self) -> list[Sample]:
        return samples_of(self.engines, self.engine)


def samples_of(engines: EngineChild, engine: str) -> list[Sample]:
    """Six completions: of one prompt that shares its prefix, and of another."""
    prompts = [PROMPT, PROMPT[::-1]]
    return engines.generate(engine, prompts, n=3, max_tokens=12, temperature=1.0, seed=7)


def error(model: nn.Module, samples: list[Sample], dtype: torch.dtype = torch.float32) -> Tensor:
    """|log p(engine) - log p(transformers)| of every sampled token, nats."""
    model = model.to(dtype)
    prompts = [PROMPT] * 3 + [PROMPT[::-1]] * 3
    found = []
    for prompt, sample in zip(prompts, samples, strict=True):
        ids = torch.tensor([prompt + list(sample.token_ids)])
        with torch.no_grad():
            logp = model(ids).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
        found.append(logp.gather(1, ids[0, len(prompt) :, None])[:, 0] - torch.tensor(sample.logp))
    return torch.cat(found).abs()
