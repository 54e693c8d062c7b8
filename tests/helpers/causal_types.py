"""Tiny random models of every type of causal language model in transformers, and what becomes of them here.

Each is exact (log-probabilities of a packed tree, or of unshared rows, and of the local engine equal those of
the plain model, path by path), or refused by a ValueError in one line that begins with its type. All of them,
a line each: `python tests/helpers/causal_types.py [TYPE ...]`. With `--write` they go to the file that
docs/models.md is made of, too.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from g2rpo_fast.engine import forwards_of, sampled_logp
from g2rpo_fast.model import ModelConfig
from g2rpo_fast.model.head import head_of
from g2rpo_fast.model.load import select_attention
from g2rpo_fast.rollout.local import LocalEngine
from g2rpo_fast.types import Request, Sampling

NOT_BUILT = {
    "cohere_compass_text": "RoPE parameters by layer type have no default",
    "dots3_note": "sizes of its adapter must match others",
    "dots3_note_text": "sizes by other names keep it large",
    "gemma3n": "needs timm",
    "gemma4_assistant": "a part of another model",
    "gemma4_unified_assistant": "a part of another model",
    "musicgen": "made of other models",
    "musicgen_melody": "made of other models",
    "qwen4_exp": "its sparse layers' sizes have no default",
    "qwen4_exp_text": "its sparse layers' sizes have no default",
}
"""Types that no size alone makes a model of, and why."""
CAUSAL_TYPES = tuple(name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if name not in NOT_BUILT)
FOUND = Path(__file__).parents[2] / "docs" / "generate" / "model_types.json"
UNSHARED = "exact on unshared rows"
VOCAB = 61
LAYERS = 4
WINDOW = 5
SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "vocab_size_per_layer_input": VOCAB,
    "hidden_size": 32,
    "embedding_size": 32,
    "word_embed_proj_dim": 32,
    "d_embed": 32,
    "hidden_size_per_layer_input": 8,
    "hidden_size_global": 64,
    "intermediate_size": 48,
    "intermediate_size_mlp": 48,
    "ffn_dim": 48,
    "ffn_hidden_size": 48,
    "decoder_ffn_dim": 48,
    "encoder_ffn_dim": 48,
    "d_ff": 48,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
    "moe_shared_expert_intermediate_size": 24,
    "expert_ffn_hidden_size": 24,
    "num_hidden_layers": LAYERS,
    "num_decoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_layers": 1,
    "num_layers": LAYERS,
    "num_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_kv_heads": 2,
    "head_dim": 8,
    "global_head_dim": 16,
    "swa_head_dim": 8,
    "kv_channels": 8,
    "rotary_dim": 4,
    "query_pre_attn_scalar": 8,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "qk_head_dim": 16,
    "v_head_dim": 8,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "moe_num_shared_experts": 1,
    "max_position_embeddings": 96,
    "n_positions": 96,
    "n_ctx": 96,
    "sliding_window": WINDOW,
    "attention_window": WINDOW,
    "window_size": WINDOW,
    "local_attention": 2 * WINDOW,
    "use_sliding_window": True,
    "first_k_dense_replace": 1,
    "is_decoder": True,
    "num_kv_shared_layers": 0,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "dim_model_base": 32,
    "conv_hidden_size": 32,
    "lru_width": 32,
    "n_embd": 32,
    "n_embed": 32,
    "n_head": 4,
    "n_heads": 4,
    "n_layer": LAYERS,
    "n_layers": LAYERS,
    "n_inner": 48,
    "d_model": 32,
    "dim": 32,
    "emb_dim": 32,
    "max_seq_len": 96,
    "mamba_d_state": 8,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_expand": 2,
    "mamba_chunk_size": 8,
    "chunk_size": 8,
    "attention_chunk_size": WINDOW,
    "zero_expert_num": 1,
}
"""Sizes by the names that configurations use."""
OWN: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local"], LAYERS // 2]]},
    "bamba": {"attn_layer_indices": [1, 3]},
    "blt": {
        "encoder_hash_byte_group_vocab": VOCAB,
        "global_config": {"hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 16}
        | {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 96},
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 32},
    },
    "falcon_h1": {"mamba_d_ssm": 64},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},
    "kimi_linear": {"linear_head_dim": 8, "linear_num_heads": 4},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"num_heads": 8},
    "reformer": {"axial_pos_embds": False},
    "roc_bert": {"pronunciation_vocab_size": VOCAB, "shape_vocab_size": VOCAB},
    "xmod": {"default_language": "en_XX"},
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "num_key_value_heads": 4,
        "kv_channels": 16,
    },
    "zaya": {"num_experts_per_tok": 1},
}
"""What some types need besides."""


def tiny_config(model_type: str, **extra: Any) -> Any:
    """A small configuration of a type, its other fields at their defaults."""
    return _shrunk(CONFIG_MAPPING[model_type], extra)


def _shrunk(kind: Any, extra: dict[str, Any]) -> Any:
    default = kind()
    fields = {name: size for name, size in SMALL.items() if _takes(default, name)}
    if "kv_lora_rank" in fields and "num_key_value_heads" in fields:
        fields["num_key_value_heads"] = SMALL["num_attention_heads"]
    for name in kind.sub_configs:
        sub = getattr(default, name, None)
        if sub is not None:
            fields[name] = _shrunk(type(sub), {})
    for name in ("layer_types", "mlp_layer_types"):
        types = getattr(default, name, None)
        if isinstance(types, list) and _takes(default, name):
            if set(types) <= {"full_attention", "sliding_attention"} and "sliding_window" in fields:
                types = ["sliding_attention", "full_attention"]
            fields[name] = (types[-1:] + sorted(set(types)) * LAYERS)[:LAYERS]
    return kind(**(fields | OWN.get(kind.model_type, {}) | extra))


def _takes(default: Any, name: str) -> bool:
    """Whether a configuration has a field that may be set; many that are None have to stay None."""
    if isinstance(getattr(type(default), type(default).attribute_map.get(name, name), None), property):
        return False
    missing = object()
    default.allow_global_per_layer_attribute_access = True  # gemma4: fields that differ by layer
    value = getattr(default, name, missing)
    named = name in ("head_dim", "num_key_value_heads", "sliding_window") or name.endswith(
        ("token_id", "experts", "_tok")
    )
    return value is not missing and (value is not None or named)


def tiny_model(model_type: str, **extra: Any) -> PreTrainedModel:
    """Weights large enough for attention, norms and biases to show in the logits."""
    torch.manual_seed(0)
    config = tiny_config(model_type, **extra)
    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    assert size < 15e6, f"{model_type}: {size} parameters"
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.1 if parameter.ndim == 1 else 0.5 * parameter.shape[-1] ** -0.5
            parameter.add_(spread * torch.randn_like(parameter))
    return model


def rows() -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(prompt, tokens): two prompts, of which one's rows also branch late; all longer than the window."""
    rng = np.random.default_rng(0)
    first, second, stem = (tuple(rng.integers(3, VOCAB, n).tolist()) for n in (9, 4, 8))
    tails = [tuple(rng.integers(3, VOCAB, n).tolist()) for n in (12, 7, 9, 15)]
    return [(first, tails[0]), (first, stem + tails[1]), (first, stem + tails[2]), (second, tails[3])]


@torch.no_grad()
def plain_logp(model: Any, prompt: Sequence[int], tokens: Sequence[int]) -> np.ndarray:
    """Log-probabilities of `tokens` after `prompt` by the model's own forward."""
    ids = torch.tensor([[*prompt, *tokens]])
    logits: Tensor = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].double()
    return logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])[:, 0].numpy()


def outcome(model_type: str, **extra: Any) -> str:
    """Why it was refused, "exact" on trees, or exact on unshared rows and why; else AssertionError."""
    plain = tiny_model(model_type, **extra)
    model = copy.deepcopy(plain)
    try:
        reason = select_attention(model)
    except ValueError as refused:
        return in_one_line(str(refused), model)
    shown = "exact" if reason is None else f"{UNSHARED}: {in_one_line(reason, model)}"
    for (prompt, tokens), got in zip(rows(), sampled_logp(model, ModelConfig(), rows())):
        error = float(np.abs(got - plain_logp(plain, prompt, tokens)).max())
        assert error < 1e-4, f"{model_type}: update off by {error:.1e} nats"
    engine = LocalEngine(model, **forwards_of(model, ModelConfig()), head=head_of(model), decode=str)
    requests = [Request(prompt_ids=p, max_tokens=14, seed=i) for i, (p, _) in enumerate(rows())]
    for request, got in zip(requests, engine.generate(requests, Sampling(temperature=1.0))):
        wanted = plain_logp(plain, request.prompt_ids, got.token_ids)
        error = float(np.abs(got.logp - wanted).max())
        assert error < 1e-4, f"{model_type}: engine off by {error:.1e} nats"
    return shown


def in_one_line(line: str, model: PreTrainedModel) -> str:
    assert line.startswith(f"{model.config.model_type}: ")
    assert "\n" not in line
    return line


def main() -> None:
    """Prints the outcome of every type, or of those named; fails at the first that is neither."""
    words = [word for word in sys.argv[1:] if word != "--write"]
    outcomes = {}
    for model_type in words or CAUSAL_TYPES:
        outcomes[model_type] = outcome(model_type)
        print(f"{model_type:24} {outcomes[model_type]}", flush=True)
    exact = sum(outcome == "exact" for outcome in outcomes.values())
    unshared = sum(outcome.startswith(UNSHARED) for outcome in outcomes.values())
    print(f"{exact} exact, {unshared} {UNSHARED}, {len(outcomes) - exact - unshared} refused by name")
    if "--write" in sys.argv:
        values = {"transformers": transformers.__version__, "outcomes": outcomes, "not_tried": NOT_BUILT}
        FOUND.write_text(json.dumps(values, indent=1) + "\n")


if __name__ == "__main__":
    main()
