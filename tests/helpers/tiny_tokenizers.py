"""Tokenizers of the usual kinds, without training, and chat templates that behave like well-known ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{%- for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{%- endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Qwen's turns."""
CHATML_THINK = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
"""A reasoning model's: the prompt opens the thought."""
CHATML_TAGS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")


def byte_level(special: Sequence[str], *, template: str | None = None, **options: Any) -> Any:
    """One token a byte, as in GPT-2, Llama 3 and Qwen; ids of `special` first."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate([*special, *alphabet])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _wrapped(tokenizer, special, template, options)


def metaspace(special: Sequence[str], pieces: Sequence[str], **options: Any) -> Any:
    """SentencePiece's way, as in Llama 2: U+2581 for a space, bytes for what has no piece, no space at the
    start of a text."""
    tokens = ["<unk>", *special, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return _wrapped(tokenizer, special, None, {"unk_token": "<unk>", **options})


def word_piece(special: Sequence[str], pieces: Sequence[str], **options: Any) -> Any:
    """BERT's way: a space before every token but `##` ones, none before punctuation."""
    tokens = [*special, *pieces]
    tokenizer = Tokenizer(models.WordPiece({t: i for i, t in enumerate(tokens)}, unk_token=special[0]))
    tokenizer.decoder = decoders.WordPiece(cleanup=True)
    return _wrapped(tokenizer, special, None, {"clean_up_tokenization_spaces": True, **options})


def _wrapped(
    tokenizer: Tokenizer, special: Sequence[str], template: str | None, options: dict[str, Any]
) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in special])
    options = {"clean_up_tokenization_spaces": False, **options}
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options)
    wrapped.chat_template = template
    return wrapped
