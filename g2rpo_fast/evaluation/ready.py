"""A model that is ready to be sampled from, outside a run: what `eval` and `sample` begin with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from g2rpo_fast.backbone import num_positions
from g2rpo_fast.cpu import free_threads, keep_freed_memory
from g2rpo_fast.engine import local_engine, sampling_of
from g2rpo_fast.evaluation.settings import config_of
from g2rpo_fast.model.load import load_model
from g2rpo_fast.model.vocabulary import check_vocabulary
from g2rpo_fast.model_source import ModelSource
from g2rpo_fast.models import check_lengths, find_device
from g2rpo_fast.rollout.local import LocalEngine
from g2rpo_fast.rollout.text_decoder import TextDecoder, text_decoder
from g2rpo_fast.types import Prompt, Sampling


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A model with what it takes to sample from it."""

    engine: LocalEngine
    sampling: Sampling
    decode: TextDecoder
    device: str


def ready(
    source: ModelSource,
    tokenizer: PreTrainedTokenizerBase,
    sections: Mapping[str, Any],
    prompts: Sequence[Prompt],
) -> Ready:
    """Loads the model, which these prompts can be put to.

    Raises:
        ValueError: no such device, a model that cannot be read or that the engine cannot run, prompts that
            are too long for it or hold tokens that it does not have, nothing that ends a response.
    """
    config = config_of(sections)
    device = find_device(config.run.device)
    torch.set_num_threads(config.run.threads or free_threads())
    keep_freed_memory()
    model = load_model(source.path, config.model, device)
    check_lengths(config, prompts, num_positions(model.config))
    check_vocabulary(model, tokenizer, prompts)
    sampling = sampling_of(config, tokenizer, model)
    return Ready(
        engine=local_engine(model, tokenizer, config),
        sampling=replace(sampling, temperature=sections["rollout"].temperature),
        decode=text_decoder(tokenizer),
        device=device,
    )
