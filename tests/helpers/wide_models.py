"""Models wide enough that what they keep of a position outweighs what they keep once."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from g2rpo_fast.model.load import select_tree_attention


def wide(kind: type, **others: int) -> PreTrainedModel:
    """Of this configuration class: 4 layers, 128 wide, in float32."""
    config = kind(
        vocab_size=64, hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=128, **others,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    select_tree_attention(model)
    return model
