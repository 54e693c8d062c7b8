"""A model that has learned nothing, for trying a pipeline on one's own data without any download.

A byte-level BPE tokenizer trained on the data's text, and a randomly initialised Qwen3.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

UNTRAINED = "untrained"
"""Value of `model.path` that asks for it."""
VOCABULARY = 1024
POSITIONS = 4096


def prepare_untrained(directory: Path, texts: Iterable[str], *, seed: int) -> Path:
    """Makes `directory/model`, or finds the one that an earlier call completed; deterministic."""
    from g2rpo_fast.embedded.model import build_model
    from g2rpo_fast.embedded.tokenizer import EOS_ID

    model_dir = directory / "model"
    if model_dir.exists():
        return model_dir
    temporary = directory / "writing_model"
    shutil.rmtree(temporary, ignore_errors=True)
    tokenizer = byte_pair_tokenizer(texts)
    assert tokenizer.eos_token_id == EOS_ID
    model = build_model(vocab_size=len(tokenizer), seed=seed, max_positions=POSITIONS)
    model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    temporary.rename(model_dir)
    return model_dir


def byte_pair_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Any text survives encoding and decoding; nothing is added to it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from g2rpo_fast.embedded.tokenizer import EOS, PAD

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS)
