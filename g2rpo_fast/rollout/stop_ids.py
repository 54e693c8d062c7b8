"""Which tokens end a response."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase


def stop_token_ids(
    tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | None, more: Sequence[int]
) -> tuple[int, ...]:
    """Every end token that tokenizer, generation config and config name, then `more`; each once.

    The end of a turn is often in one of the model's configs only (Gemma 3, Phi, Qwen and Llama instruct).

    Raises:
        ValueError: an id that the model has no embedding of, with the place that names it.
    """
    named: dict[str, Any] = {"model.path: tokenizer.eos_token_id": tokenizer.eos_token_id}
    if model is not None:
        configs = {
            "generation_config.json": model.generation_config,
            "config.json": model.config,
            "config.json, text_config": model.config.get_text_config(),
        }
        named |= {
            f"model.path: eos_token_id of {name}": getattr(config, "eos_token_id", None)
            for name, config in configs.items()
        }
    named["rollout.stop_token_ids"] = list(more)
    stops = [(name, i) for name, value in named.items() for i in _as_list(value)]
    if model is not None:
        embedding = model.get_input_embeddings().weight
        assert isinstance(embedding, torch.Tensor)
        vocabulary = embedding.shape[0]
        for name, i in stops:
            if not 0 <= i < vocabulary:
                raise ValueError(f"{name}: wanted ids in [0, {vocabulary}), got {i}")
    return tuple(dict.fromkeys(i for _, i in stops))


def _as_list(value: int | list[int] | None) -> list[int]:
    """transformers has none, one or several."""
    if value is None:
        return []
    return [value] if isinstance(value, int) else list(value)
