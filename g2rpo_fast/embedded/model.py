"""The embedded model: a Qwen3 of about 0.4 million parameters."""

from __future__ import annotations

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from g2rpo_fast.embedded.tokenizer import EOS_ID, PAD_ID


def build_model(*, vocab_size: int, seed: int, max_positions: int = 512) -> Qwen3ForCausalLM:
    """A freshly initialised float32 model on the CPU; the process's own random state is left alone."""
    config = Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=max_positions,
        tie_word_embeddings=True,
        pad_token_id=PAD_ID,
        eos_token_id=EOS_ID,
        bos_token_id=None,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(config)
