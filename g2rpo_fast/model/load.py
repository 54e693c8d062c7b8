"""Loading a policy: what cannot be trained on packed trees is refused here, before anything is spent."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from g2rpo_fast.model.config import ModelConfig
from g2rpo_fast.model.head import head_of
from g2rpo_fast.model.hook import ATTENTION, register_attention
from g2rpo_fast.model.probe import check_tree
from g2rpo_fast.model.read import reading
from g2rpo_fast.model.row_ops import use_row_ops

LAYER_TYPES = ("full_attention", "sliding_attention")
"""Layers whose state a tree can share: attention, with or without a sliding window."""


def load_model(path: str, config: ModelConfig, device: str) -> PreTrainedModel:
    """The causal language model at `path`: float32 weights on `device`, tree attention selected.

    What is saved from it (`save_pretrained`) loads in plain transformers with transformers' own attention.

    Raises ValueError, naming the model type and the reason: layers other than full or sliding attention
    (linear attention, state space, chunked, hybrids), attention sinks, any dropout, an LM head that is not
    one linear map, and whatever else makes a small tree's logits differ from the plain model's.
    """
    with reading(path, "a causal language model that transformers can read"):
        model_config = AutoConfig.from_pretrained(path)
    check_config(model_config)
    with reading(path, "a causal language model that transformers can read"):
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    model.to(torch.device(device))  # pyright: ignore[reportArgumentType] (a decorator hides the signature)
    sinks = [name for name, _ in model.named_parameters() if name.endswith(".sinks")]
    if sinks:
        raise ValueError(f"{model.config.model_type}: wanted attention without sinks, got {sinks[0]}")
    select_tree_attention(model)
    if model.device.type == "cpu":
        use_row_ops(model)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()  # only then do layers checkpoint; there is no dropout to switch on
    return model


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """The tokenizer at `path`. Raises ValueError where there is none."""
    with reading(path, "a tokenizer that transformers can read"):
        return AutoTokenizer.from_pretrained(path)


def select_tree_attention(model: PreTrainedModel) -> None:
    """Give a plain model tree attention, and check on a small tree that it computes what it did before."""
    head_of(model)
    register_attention()
    before = str(model.config._attn_implementation)
    check_tree(model, plain=before, tree=ATTENTION)
    model.set_attn_implementation(ATTENTION)


def check_config(config: PreTrainedConfig) -> None:
    """ValueError if a model of this configuration cannot be trained on packed trees."""
    text: Any = config.get_text_config()
    other = sorted(set(getattr(text, "layer_types", None) or LAYER_TYPES) - set(LAYER_TYPES))
    if other:
        raise ValueError(
            f"{config.model_type}: wanted layers of {', '.join(LAYER_TYPES)} only, got {', '.join(other)}: "
            "a state other than keys and values does not follow the branches of a tree"
        )
    for name, value in text.to_dict().items():
        if ("dropout" in name or name.endswith("pdrop")) and isinstance(value, (int, float)) and value > 0:
            raise ValueError(
                f"{config.model_type}: wanted {name} = 0, got {value}: log-probabilities of "
                "one token would differ between passes. Set it to 0 in the model's config.json."
            )
