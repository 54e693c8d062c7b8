"""Loading a policy: on packed trees where these are exact, else on unshared rows; or refused, before anything
is spent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from g2rpo_fast.adapters.place import whole_base_of
from g2rpo_fast.adapters.stored import read_causal_lm
from g2rpo_fast.model.balance import balance_of
from g2rpo_fast.model.balance_probe import check_balance
from g2rpo_fast.model.checkpointing import checkpoint_layers
from g2rpo_fast.model.config import FusedOps, ModelConfig
from g2rpo_fast.model.half import keep_half
from g2rpo_fast.model.head import head_of
from g2rpo_fast.model.hook import ATTENTION, register_attention
from g2rpo_fast.model.liger_ops import use_liger_ops
from g2rpo_fast.model.probe import check_rows, check_tree
from g2rpo_fast.model.read import check_json_files, reading
from g2rpo_fast.model.recurrent.install import (
    ATTENDS,
    KEEPS_NOTHING,
    KEEPS_STATE,
    fork_states,
    unfork_states,
)
from g2rpo_fast.model.row_ops import use_row_ops

LAYER_TYPES = tuple(dict.fromkeys((*ATTENDS, *KEEPS_STATE, *KEEPS_NOTHING)))
"""Layers that a tree can share: attention, with or without a sliding window, and states that fork."""
NOISE = ("dropout", "pdrop", "layerdrop", "drop_path", "jitter", "noise")
"""Parts of the names by which configurations ask for noise in training mode."""
OTHER_HEADS = ("classifier", "summary", "cls_", "token_classification")
"""How the names of noise begin that only heads without a language model have."""


def load_model(
    path: str,
    config: ModelConfig,
    device: str,
    *,
    must_share: bool = False,
    unshared: Callable[[str], None] = lambda reason: None,
) -> PreTrainedModel:
    """The causal language model at `path`: weights in `config.weights` on `device`, tree attention selected
    where it is exact (`follows_trees`), else its own. Adapters (PEFT) at `path` are merged into their base.

    It is in evaluation mode and stays there, with checkpointing too: all noise that its configuration asks
    for in training (`noise_of`) is off, so that one token has one log-probability in every pass. What is
    saved from it (`save_pretrained`) loads in plain transformers with transformers' own attention.

    Args:
        must_share: refuse a model whose layers do not follow a tree.
        unshared: is told why the model's layers do not: a line that begins with its type.

    Raises ValueError, naming the model type and the reason: a loss of experts that is not transformers' usual
    one, logits that are more than its head makes of hidden states, layers that see later tokens; with
    `must_share` also layers other than full or sliding attention and states that fork (`recurrent`),
    attention sinks, and whatever else makes a small tree's logits differ from the plain model's.
    """
    check_json_files(path)
    base = whole_base_of(path)
    with reading(base, "a causal language model that transformers can read"):
        model_config = AutoConfig.from_pretrained(base)
    if must_share:
        with _required():
            check_layers(model_config)
    with reading(path, "a causal language model that transformers can read"):
        model = read_causal_lm(path, torch.float32)
    model.to(torch.device(device))  # pyright: ignore[reportArgumentType] (a decorator hides the signature)
    model.eval()
    if must_share:
        head_of(model)
        with _required():
            select_tree_attention(model)
    elif reason := select_attention(model):
        unshared(reason)
    if balance := balance_of(model, config):
        check_balance(model, balance)
    fuse_ops(model, config.fused_ops)
    if config.gradient_checkpointing:
        checkpoint_layers(model, num_layers=config.checkpointed_layers, offload=config.offload_activations)
    if config.weights == "bfloat16":
        keep_half(model)
    return model


@contextmanager
def _required() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"tree.sharing: required, but a prefix tree does not fit {error}") from error


def select_attention(model: PreTrainedModel) -> str | None:
    """Give a plain model tree attention, or leave it its own; then the reason why.

    Raises ValueError, naming the model type, where neither computes what the model does.
    """
    head_of(model)
    try:
        select_tree_attention(model)
    except ValueError as error:
        check_rows(model)
        return str(error)
    return None


def select_tree_attention(model: PreTrainedModel) -> None:
    """Give a plain model tree attention; ValueError, and its own, where that is not what it did before."""
    head_of(model)
    check_layers(model.config)
    sinks = [name for name, _ in model.named_parameters() if name.endswith(".sinks")]
    if sinks:
        raise ValueError(f"{model.config.model_type}: wanted attention without sinks, got {sinks[0]}")
    register_attention()
    before = str(model.config._attn_implementation)
    fork_states(model)
    try:
        check_tree(model, plain=before, tree=ATTENTION)
    except ValueError:
        unfork_states(model)
        raise
    model.set_attn_implementation(ATTENTION)


def fuse_ops(model: PreTrainedModel, choice: FusedOps) -> int:
    """What `model.fused_ops` means on the model's device. Returns how many modules compute otherwise now."""
    if choice == "off":
        return 0
    if model.device.type == "cpu":
        return use_row_ops(model)
    liger = model.device.type == "cuda" and find_spec("liger_kernel") is not None
    return use_liger_ops(model) if liger else 0


def noise_of(config: PreTrainedConfig) -> dict[str, float]:
    """The noise (dropout, jitter of routers, dropped layers) that a model would have in training mode."""
    return {
        name: value
        for name, value in config.get_text_config().to_dict().items()
        if any(part in name for part in NOISE)
        and not name.startswith(OTHER_HEADS)
        and type(value) in (int, float)
        and value > 0
    }


def check_layers(config: PreTrainedConfig) -> None:
    """ValueError if a model of this configuration says that its layers are none that a tree can share."""
    text: Any = config.get_text_config()
    other = sorted(set(getattr(text, "layer_types", None) or LAYER_TYPES) - set(LAYER_TYPES))
    if other:
        raise ValueError(
            f"{config.model_type}: wanted layers of {', '.join(LAYER_TYPES)} only, got {', '.join(other)}: "
            "what they keep does not follow the branches of a tree"
        )
