"""A tiny model, its tokenizer and a data set, for tests that run TRL's GRPOTrainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

DIGITS = "0123456789"


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split

    words = ["<pad>", "<eos>", "<unk>", *DIGITS]
    made = Tokenizer(WordLevel({word: token for token, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = Split("", "isolated")
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, padding_side="left", **special)


def tiny_model() -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=13,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    model: Any = Qwen3ForCausalLM(config)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(8)  # logits of about a nat
    return model


def even_share(completions: list[str], **columns: object) -> list[float]:
    """Share of even digits; differs within nearly every group."""
    return [sum(c in "02468" for c in text) / max(len(text), 1) for text in completions]


def make_trainer(
    kind: Any, directory: Path, model: Any = None, arguments: Any = None, **settings: Any
) -> Any:
    """A GRPOTrainer, or a subclass of it, on the CPU; with RLOOConfig as `arguments` an RLOOTrainer."""
    from datasets import Dataset
    from trl.trainer.grpo_config import GRPOConfig

    model = model or tiny_model()
    model.save_pretrained(directory / "model")  # a reference model is read from where the policy came from
    model.config._name_or_path = str(directory / "model")
    given = (arguments or GRPOConfig)(
        output_dir=str(directory),
        use_cpu=True,
        bf16=False,
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=6,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_steps=1,
        **{"gradient_checkpointing": False, "learning_rate": 1e-3, **settings},
    )
    return kind(
        model=model,
        reward_funcs=even_share,
        args=given,
        train_dataset=Dataset.from_list([{"prompt": DIGITS[i:] + DIGITS[:i][:3]} for i in range(8)]),
        processing_class=tiny_tokenizer(),
    )
