"""Adapters to vLLM on a CPU, one thread, float32: merged into whole weights, or alone.

A random model of SmolLM2-135M's shape with LoRA of rank 16 at all linear maps. Both engines run at the same
time and take turns; times are of the wall clock. A sync is all of `Engine.sync`: packing, sending, taking in,
resetting caches. Sampling is of forced, equal length, after a sync. Needs vLLM's CPU build.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from g2rpo_fast.adapters import AdapterConfig
from g2rpo_fast.adapters.attach import add_adapters
from g2rpo_fast.embedded.tokenizer import build_tokenizer
from g2rpo_fast.engine import sampled_logp
from g2rpo_fast.model import ModelConfig
from g2rpo_fast.model.load import select_tree_attention
from g2rpo_fast.rollout.vllm import VllmConfig
from g2rpo_fast.rollout.vllm.engine import VllmEngine
from g2rpo_fast.types import Completion, Floats, Request, Sampling
from timing import spread_ms

pytestmark = pytest.mark.skipif(find_spec("vllm") is None, reason="needs vLLM (make vllm-test installs it)")

WAYS: tuple[Literal["merged", "lora"], ...] = ("merged", "lora")
SIZES: dict[bool, dict[str, Any]] = {
    True: {
        "vocab_size": 49152, "hidden_size": 576, "num_hidden_layers": 30, "intermediate_size": 1536,
        "num_attention_heads": 9, "num_key_value_heads": 3,
    },
    False: {
        "vocab_size": 256, "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 96,
        "num_attention_heads": 2, "num_key_value_heads": 1,
    },
}  # fmt: skip
CASES: dict[bool, dict[str, dict[str, int]]] = {
    True: {
        "8 prompts x 8, 64 tokens": {"num_prompts": 8, "group": 8, "prompt": 100, "completion": 64},
        "1 prompt x 4, 64 tokens": {"num_prompts": 1, "group": 4, "prompt": 100, "completion": 64},
    },
    False: {"1 prompt x 2": {"num_prompts": 1, "group": 2, "prompt": 40, "completion": 4}},
}


def model_of(full: bool) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(**SIZES[full], max_position_embeddings=2048, tie_word_embeddings=True)
    model = LlamaForCausalLM(config).eval()
    select_tree_attention(model)
    add_adapters(model, AdapterConfig(kind="lora", rank=16 if full else 4), base="", seed=0)
    return model


def engine_of(stack: ExitStack, model: Any, way: Literal["merged", "lora"], directory: Path) -> VllmEngine:
    engine = VllmEngine(
        model,
        build_tokenizer("0123456789"),
        VllmConfig(kv_cache_mib=512, dtype="float32", adapters=way),
        logp=partial(sampled_logp, model, ModelConfig()),
        max_rows=64,
        threads=1,
        log_path=directory / f"{way}.log",
        show=lambda line: None,
    )
    stack.callback(engine.close)
    engine.sync(0)
    return engine


def requests_of(full: bool, num_prompts: int, group: int, prompt: int, completion: int) -> list[Request]:
    rng = np.random.default_rng(0)
    prompts = rng.integers(8, SIZES[full]["vocab_size"], (num_prompts, prompt)).repeat(group, 0)
    return [
        Request(prompt_ids=tuple(ids.tolist()), max_tokens=completion, seed=seed)
        for seed, ids in enumerate(prompts)
    ]


@torch.no_grad()
def step(model: Any, version: int) -> None:
    """An optimiser's, as far as the engine can tell."""
    generator = torch.Generator().manual_seed(version)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(1e-3 * torch.randn(parameter.shape, generator=generator))


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def syncs(engines: dict[str, VllmEngine], model: Any, rounds: int) -> dict[str, Any]:
    """In turn; two rounds, in which memory is touched for the first time, are not counted."""
    seconds: dict[str, list[float]] = {way: [] for way in engines}
    sent: dict[str, list[float]] = {way: [] for way in engines}
    for round_ in range(rounds + 2):
        step(model, round_)
        for way, engine in engines.items():
            engine.metrics()
            taken = timed(partial(engine.sync, round_ + 1))
            if round_ >= 2:
                seconds[way].append(taken)
                sent[way].append(engine.metrics()["engine/sync_bytes"])
    return {way: {**spread_ms(seconds[way]), "mb": 1e-6 * statistics.median(sent[way])} for way in engines}


def samplings(engines: dict[str, VllmEngine], asked: list[Request], rounds: int) -> dict[str, Any]:
    """In turn, each after a sync: nothing of the prompts is cached."""
    seconds: dict[str, list[float]] = {way: [] for way in engines}
    for round_ in range(rounds + 1):
        for way, engine in engines.items():
            engine.sync(0)
            taken = timed(partial(engine.generate, asked, Sampling()))
            if round_:
                seconds[way].append(taken)
    tokens = sum(request.max_tokens for request in asked)
    return {
        way: {**spread_ms(taken), "tokens_per_s": tokens / statistics.median(taken)}
        for way, taken in seconds.items()
    }


def difference(one: list[Completion], other: list[Completion], logp: list[Floats]) -> dict[str, float]:
    """Largest |log p - log p| of the trainer and each engine on what it sampled first."""
    first = zip(one, other, strict=True)
    assert all(a.token_ids == b.token_ids for a, b in first)
    return {
        way: max(float(np.abs(c.logp - wanted).max()) for c, wanted in zip(completions, logp, strict=True))
        for way, completions in (("merged", one), ("lora", other))
    }


def test_adapters_to_vllm(benchmark_mode: bool, record: Callable[[str, dict], None], tmp_path: Path) -> None:
    torch.set_num_threads(1)
    model = model_of(benchmark_mode)
    rounds = 11 if benchmark_mode else 2
    with ExitStack() as stack:
        engines = {way: engine_of(stack, model, way, tmp_path) for way in WAYS}
        synced = syncs(engines, model, rounds)
        asked = [
            Request(prompt_ids=r.prompt_ids, max_tokens=8, seed=r.seed)
            for r in requests_of(benchmark_mode, 4, 1, 20, 8)
        ]
        merged, lora = (engines[way].generate(asked, Sampling()) for way in WAYS)
        rows = [(request.prompt_ids, c.token_ids) for request, c in zip(asked, merged, strict=True)]
        off = difference(merged, lora, sampled_logp(model, ModelConfig(), rows))
        assert max(off.values()) < 1e-3
        sampled = {
            name: samplings(engines, requests_of(benchmark_mode, **case), 5 if benchmark_mode else 1)
            for name, case in CASES[benchmark_mode].items()
        }
    record(
        "adapters_to_vllm_cpu",
        {
            "parameters": sum(p.numel() for p in model.parameters() if not p.requires_grad),
            "in_adapters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "rounds": rounds,
            "sync": synced,
            "sampling": sampled,
            "largest_difference_to_trainer": off,
        },
    )
