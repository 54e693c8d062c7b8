"""Tiny models on prefix trees, and the rows that they are held to."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    PreTrainedModel,
    Qwen3Config,
)

from g2rpo_fast.model.hook import ATTENTION, register_attention
from g2rpo_fast.types import Sequences

VOCAB = 29
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GEMMA: dict[str, Any] = {"sliding_window": 6, "query_pre_attn_scalar": 8, "final_logit_softcapping": 3.0}
FAMILIES: dict[str, tuple[type, dict[str, Any]]] = {
    "qwen3": (Qwen3Config, {}),
    "llama": (LlamaConfig, {}),
    "gemma2": (Gemma2Config, GEMMA | {"attn_logit_softcapping": 0.5}),
    "gemma3": (Gemma3TextConfig, GEMMA),
}


class DoubleNorm(nn.Module):
    """RMSNorm with nothing cast to float32."""

    def __init__(self, norm: Any, offset: float) -> None:
        super().__init__()
        self.weight, self.offset = norm.weight, offset
        self.eps = norm.eps if offset else norm.variance_epsilon

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * (self.weight + self.offset)


def on_trees(model: PreTrainedModel, *, checkpointing: bool = False) -> PreTrainedModel:
    """A copy that selects tree attention."""
    register_attention()
    model = copy.deepcopy(model)
    model.set_attn_implementation(ATTENTION)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
    return model


def rows(guidance_in_loss: bool) -> tuple[Sequences, Tensor, Tensor]:
    """Groups of 5, 3 and 1 with guided members (shared traces of two lengths), weights and advantages."""
    rng = np.random.default_rng(0)
    prompts = [[3, 4, 5, 6, 7, 8, 9], [3, 9, 11], [5]]
    traces = [[12, 13, 14, 15, 16, 17], [18, 19], []]
    guided = [[6, 6, 3, 0, 0], [2, 0, 0], [0]]
    ids, trained, ptr, group = [], [], [0], []
    sampled: list[int] = []
    for g, lengths in enumerate(guided):
        for m, length in enumerate(lengths):
            alike = sampled[:2] if m and m == len(lengths) - 1 else []  # siblings that begin alike
            sampled = alike + rng.integers(20, VOCAB, 4 + 3 * m - len(alike)).tolist()
            ids += prompts[g] + traces[g][:length] + sampled
            trained += [False] * len(prompts[g]) + [guidance_in_loss] * length + [True] * len(sampled)
            ptr.append(len(ids))
            group.append(g)
    sequences = Sequences(
        ids_N=np.array(ids, np.int32),
        ptr_R1=np.array(ptr, np.int64),
        trained_N=np.array(trained),
        group_R=np.array(group, np.int32),
    )
    advantage_N = torch.tensor(rng.normal(size=len(ids)))
    weight_N = torch.tensor(rng.uniform(0.1, 1.0, size=len(ids))) * torch.tensor(trained)
    return sequences, advantage_N, weight_N
