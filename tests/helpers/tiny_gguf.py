"""A tiny Llama in a GGUF file, as llama.cpp's converter writes one; with the real package gguf."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from g2rpo_fast.embedded.untrained import byte_pair_tokenizer
from tiny_tokenizers import CHATML

TEXTS = ("What is 12 + 30? What is 40 + 21 + 15?", "12 + 30 = 42\n#### 42", "system user assistant")
HEADS, KV_HEADS, HEAD_DIM, LAYERS = 4, 2, 16, 2
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""Of a module, in a layer its end -> what GGUF calls it."""


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with turns."""
    tokenizer = byte_pair_tokenizer(TEXTS)
    tokenizer.chat_template = CHATML
    return tokenizer


def tiny_llama(seed: int = 0) -> LlamaForCausalLM:
    """With tied embeddings and fewer KV heads than heads."""
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer()),
        hidden_size=HEADS * HEAD_DIM,
        intermediate_size=96,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        eos_token_id=1,
        pad_token_id=0,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


def write_gguf(path: Path, model: LlamaForCausalLM, *, quantised: bool = False) -> dict[str, torch.Tensor]:
    """Writes the model with `tiny_tokenizer`; matrices as Q8_0 where `quantised`.

    Returns:
        The weights that the file stands for, by transformers' names.
    """
    gguf: Any = importlib.import_module("gguf")
    writer = gguf.GGUFWriter(path, "llama")
    _write_settings(writer)
    _write_tokenizer(writer, gguf.TokenType)
    meant = {}
    for name, parameter in model.named_parameters():
        weight = parameter.detach()
        if quantised and weight.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            packed = gguf.quants.quantize(_interleaved(name, weight).numpy(), kind)
            writer.add_tensor(_name_of(name), packed, raw_dtype=kind)
            weight = _halves(name, torch.from_numpy(gguf.quants.dequantize(packed, kind)))
        else:
            writer.add_tensor(_name_of(name), _interleaved(name, weight).numpy())
        meant[name] = weight.clone()
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return meant


def _write_settings(writer: Any) -> None:
    writer.add_name("tiny")
    writer.add_context_length(512)
    writer.add_embedding_length(HEADS * HEAD_DIM)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(96)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_rope_freq_base(10000.0)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tiny_tokenizer()))


def _write_tokenizer(writer: Any, kinds: Any) -> None:
    tokenizer = tiny_tokenizer()
    saved = json.loads(tokenizer.backend_tokenizer.to_str())
    ids = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    special = set(tokenizer.all_special_ids)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([token for token, _ in ids])
    writer.add_token_types([kinds.CONTROL if index in special else kinds.NORMAL for _, index in ids])
    writer.add_token_merges([" ".join(pair) for pair in saved["model"]["merges"]])
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(0)
    writer.add_chat_template(CHATML)


def _name_of(name: str) -> str:
    module = name.removesuffix(".weight")
    if not module.startswith("model.layers."):
        return f"{NAMES[module]}.weight"
    number, _, inner = module.removeprefix("model.layers.").partition(".")
    return f"blk.{number}.{NAMES[inner]}.weight"


def _interleaved(name: str, weight: torch.Tensor) -> torch.Tensor:
    """Rows of queries and keys in llama.cpp's order: the pairs that RoPE turns stand side by side."""
    heads = _heads_of(name)
    if heads is None:
        return weight
    return weight.view(heads, 2, HEAD_DIM // 2, -1).transpose(1, 2).reshape(weight.shape).contiguous()


def _halves(name: str, weight: torch.Tensor) -> torch.Tensor:
    """The inverse of `_interleaved`: transformers' order."""
    heads = _heads_of(name)
    if heads is None:
        return weight
    return weight.view(heads, HEAD_DIM // 2, 2, -1).transpose(1, 2).reshape(weight.shape).contiguous()


def _heads_of(name: str) -> int | None:
    if name.endswith("q_proj.weight"):
        return HEADS
    return KV_HEADS if name.endswith("k_proj.weight") else None
