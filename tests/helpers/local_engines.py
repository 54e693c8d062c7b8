"""Tiny models of every family, the local engine over them, and requests that share prefixes."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from g2rpo_fast.engine import prefill_tree
from g2rpo_fast.model import ModelConfig
from g2rpo_fast.model.head import head_of
from g2rpo_fast.model.load import select_tree_attention
from g2rpo_fast.rollout.local import LocalEngine
from g2rpo_fast.types import Completion, Request, Sampling

VOCABULARY = 37
SIZE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 160,
    "initializer_range": 0.3,
    "attn_implementation": "sdpa",  # eager attention rounds its softmax to float32
}
WINDOWED = {
    "use_sliding_window": True,
    "sliding_window": 7,
    "layer_types": ["full_attention", "sliding_attention"],
}
ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
MODELS: dict[str, tuple[Any, Any, dict[str, Any], str]] = {
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"tie_word_embeddings": True}, "functional"),
    "qwen3-windowed": (Qwen3ForCausalLM, Qwen3Config, WINDOWED, "functional"),
    "llama": (LlamaForCausalLM, LlamaConfig, {"rope_parameters": ROPE}, "functional"),
    "llama-biased": (LlamaForCausalLM, LlamaConfig, {"attention_bias": True}, "hooked"),
    "mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": 9}, "functional"),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}, "functional"),
    "gemma2": (
        Gemma2ForCausalLM,
        Gemma2Config,
        {
            "sliding_window": 6,
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 4.0,
            "query_pre_attn_scalar": 8,
            "attn_implementation": "eager",
        },
        "hooked",
    ),
}


def plain_model(
    name: str = "qwen3", *, vocabulary: int = VOCABULARY, dtype: torch.dtype = torch.float64, **others: Any
) -> Any:
    """A tiny random model whose norms compute in its own dtype (transformers' round to float32)."""
    build, config, extra, _ = MODELS[name]
    torch.manual_seed(0)
    sizes = {key: value for key, value in SIZE.items() if (key, name) != ("head_dim", "qwen2")}
    model = build(config(vocab_size=vocabulary, **{**sizes, **extra, **others})).eval()
    for name_, parameter in model.named_parameters():
        if parameter.ndim == 1:  # norms and biases start as ones and zeros: nothing would tell them apart
            torch.nn.init.normal_(parameter, mean=0.0 if name_.endswith("bias") else 1.0, std=0.3)
    exact = _exact_gemma_norm if name == "gemma2" else _exact_norm
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = partial(exact, module)
    return model.to(dtype)


def _exact_norm(module: Any, x: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(x, module.weight.shape, module.weight, module.variance_epsilon)


def _exact_gemma_norm(module: Any, x: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(x, module.weight.shape, 1 + module.weight, module.eps)


def letters(ids: Iterable[int]) -> str:
    return "".join(chr(48 + i) for i in ids)


def engine_of(plain: Any, **options: Any) -> LocalEngine:
    """The engine over a copy of `plain` that attends through trees."""
    model: PreTrainedModel = copy.deepcopy(plain)
    for module in model.modules():
        if isinstance(vars(module).get("forward"), partial):  # the copy's norms, not the original's
            module.forward = partial(vars(module)["forward"].func, module)
    select_tree_attention(model)
    compute = options.pop("compute", ModelConfig())
    prefill = options.pop("prefill", partial(prefill_tree, model, compute))
    return LocalEngine(model, prefill=prefill, head=head_of(model), decode=letters, **options)


def prompts(vocabulary: int = VOCABULARY) -> list[tuple[int, ...]]:
    """Unshared, shared, guided by one trunk at three lengths, siblings, one token; lengths 1 to 33."""
    rng = np.random.default_rng(1)
    stem, trunk = (tuple(rng.integers(0, vocabulary, n).tolist()) for n in (13, 20))
    other = tuple(rng.integers(0, vocabulary, 30).tolist())
    return [stem, stem + trunk[:5], stem + trunk, other, (*other[:25], 1, 2, 3), (4,), stem + trunk[:12]]


def requests(num_each: int = 3, max_tokens: int = 24) -> list[Request]:
    return [
        Request(prompt_ids=prompt, max_tokens=max_tokens, seed=1000 * i + member)
        for member in range(num_each)
        for i, prompt in enumerate(prompts())
    ]


def tokens(completions: Sequence[Completion]) -> list[tuple[int, ...]]:
    return [completion.token_ids for completion in completions]


def reference_logp(plain: Any, request: Request, completion: Completion, sampling: Sampling) -> np.ndarray:
    ids: Any = torch.tensor([request.prompt_ids + completion.token_ids], device=plain.device)
    with torch.no_grad():
        logits = plain(ids).logits[0, len(request.prompt_ids) - 1 : -1]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if sampling.temperature not in (0, 1):
        logits = TemperatureLogitsWarper(sampling.temperature)(ids, logits)
    if sampling.top_k:
        logits = TopKLogitsWarper(sampling.top_k)(ids, logits)
    if sampling.top_p < 1:
        logits = TopPLogitsWarper(sampling.top_p)(ids, logits)
    chosen = torch.tensor(completion.token_ids, device=plain.device)[:, None]
    return logits.log_softmax(-1).gather(1, chosen)[:, 0].cpu().numpy()


FUNCTIONAL = [name for name, (*_, decoder) in MODELS.items() if decoder == "functional"]
SAMPLING = Sampling(temperature=0.8)


def uneven(seed: int = 0) -> list[Request]:
    """Every prompt, guided or not, three times; from 0 to 126 tokens, so that rows end at all times."""
    limits = np.random.default_rng(seed).integers(0, 127, (3, len(prompts())))
    limits[:, 0], limits[0, 1] = 126, 0
    return [
        Request(prompt_ids=prompt, max_tokens=int(limits[member, i]), seed=100 * i + member)
        for member in range(3)
        for i, prompt in enumerate(prompts())
    ]


def assert_same(got: Sequence[Completion], wanted: Sequence[Completion], atol: float) -> None:
    assert tokens(got) == tokens(wanted)
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_allclose(a.logp, b.logp, rtol=0, atol=atol)
        assert a.finish_reason == b.finish_reason
