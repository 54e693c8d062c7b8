"""The rollout engine of a run: the stage's engine, given the model's tree forward as its prefill."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from g2rpo_fast.config import Config
from g2rpo_fast.model import ModelConfig, compute_context, compute_dtype, head_of, tree_hidden
from g2rpo_fast.rollout import LocalEngine, Prefill
from g2rpo_fast.rollout.prefill import Decode
from g2rpo_fast.tree import plan_trees
from g2rpo_fast.types import Sampling, Sequences


def local_engine(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: Config) -> LocalEngine:
    """Samples in this process, on the trainer's own weights."""
    return LocalEngine(
        model,
        prefill=partial(prefill_tree, model, config.model),
        head=head_of(model),
        decode=text_decoder(tokenizer),
        max_rows=config.rollout.max_rows,
        compute_dtype=compute_dtype(model, config.model),
        backbone=model.get_decoder(),
    )


@torch.no_grad()
def prefill_tree(model: PreTrainedModel, config: ModelConfig, prefixes: list[tuple[int, ...]]) -> Prefill:
    """Encodes distinct prefixes as one prefix tree: prompts once, guidance trunks once."""
    ids_N = np.fromiter((i for prefix in prefixes for i in prefix), np.int32)
    sequences = Sequences(
        ids_N=ids_N,
        ptr_R1=np.cumsum([0, *map(len, prefixes)], dtype=np.int64),
        trained_N=np.zeros(len(ids_N), np.bool_),
        group_R=np.zeros(len(prefixes), np.int32),
    )
    (plan,) = plan_trees(sequences, whole=True)
    with compute_context(model, config):
        output = tree_hidden(model, plan, attention=config.attention, collect_kv=True)
    last_B = np.empty(len(prefixes), np.int32)
    last_B[plan.row_B] = plan.last_B
    return Prefill(
        position_S=plan.position_S,
        end_S=plan.end_S,
        last_B=last_B,
        keys=output.kv,
        hidden_SD=output.hidden_SD,
    )


def text_decoder(tokenizer: PreTrainedTokenizerBase) -> Decode:
    """Token ids to text, special tokens left out."""

    def decode(ids: Iterable[int]) -> str:
        text = tokenizer.decode(list(ids), skip_special_tokens=True)
        assert isinstance(text, str)
        return text

    return decode


def sampling_of(config: Config, tokenizer: PreTrainedTokenizerBase) -> Sampling:
    """Training's sampling distribution; the tokenizer's end token stops.

    Raises:
        ValueError: the tokenizer has no end token.
    """
    end = tokenizer.eos_token_id
    if not isinstance(end, int):
        raise ValueError(f"model.path: wanted a tokenizer with one end-of-sequence token, got {end}")
    return config.rollout.sampling((end,))
