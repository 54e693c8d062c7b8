"""Tokenizer and model have one vocabulary: what does not is named before anything is spent.

A model may have more rows than its tokenizer has tokens (a padded vocabulary), and a tokenizer more tokens
than the model has rows as long as nothing uses them (Gemma 3's image token).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from g2rpo_fast.adapters.place import base_of, is_adapter
from g2rpo_fast.model.head import head_of
from g2rpo_fast.model.read import check_json_files, reading
from g2rpo_fast.types import Prompt

TOKENIZER_FILES = ("*token*", "*vocab*", "*merges*", "*.model", "*.tiktoken", "tekken.json")


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """The tokenizer at `path`; of adapters without one, that of their base. Raises ValueError where there is
    none."""
    wanted = "a tokenizer that transformers can read"
    directory = Path(path)
    while is_adapter(path) and not _has_files(directory):
        path = base_of(path)
        directory = Path(path)
    if directory.is_dir() and not _has_files(directory):
        raise ValueError(f"model.path: wanted {wanted}, got {path}: it has no tokenizer files")
    check_json_files(path)
    with reading(path, wanted):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path)
    known: dict[str, int] = tokenizer.get_vocab()
    added = {str(token) for token in tokenizer.added_tokens_decoder.values()}
    if not known.keys() - added:  # transformers makes some tokenizers without their files
        raise ValueError(f"model.path: wanted {wanted}, got {path}: it has no vocabulary but special tokens")
    return tokenizer


def check_vocabulary(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Iterable[Prompt]
) -> None:
    """Every token of prompts and traces exists in the model (`stop_token_ids` checks those that end it).

    Raises:
        ValueError: names both sizes and the token, for the first that does not.
    """
    size = min(_rows(model.get_input_embeddings()), len(head_of(model).weight_VD))
    for prompt in prompts:
        hinted = (("hinted prompt", ids) for ids in prompt.hinted_ids)
        for what, ids in (("prompt", prompt.token_ids), ("trace", prompt.trace_ids), *hinted):
            token = max(ids, default=0)
            if token >= size:
                raise ValueError(
                    f"model.path: wanted tokens that the model has embeddings for (ids below {size}; its "
                    f"tokenizer has {len(tokenizer)} tokens), got {token} "
                    f"({tokenizer.convert_ids_to_tokens(token)}) in the {what} of {prompt.id}"
                )


def _has_files(directory: Path) -> bool:
    return any(any(directory.glob(name)) for name in TOKENIZER_FILES)


def _rows(embeddings: Any) -> int:
    return len(embeddings.weight)
