"""Decoding on a CPU with packed weights against plain products: a model shaped as SmolLM2-135M, one thread.

Both in turn in one process: CPU seconds of whole rollouts, prefill and packing included. `best_gflops` is the
rate of a large product.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from g2rpo_fast.engine import prefill_tree
from g2rpo_fast.model import ModelConfig
from g2rpo_fast.model.head import head_of
from g2rpo_fast.model.load import select_tree_attention
from g2rpo_fast.rollout.local import LocalEngine, decoder
from g2rpo_fast.types import Request, Sampling

PROMPTS, PROMPT = 8, 16
SMALL = {"hidden_size": 512, "intermediate_size": 512, "num_hidden_layers": 1, "vocab_size": 520}
SHAPE = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "vocab_size": 49152}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def engine_of(shape: dict[str, int], dtype: torch.dtype) -> LocalEngine:
    torch.manual_seed(0)
    heads = {"num_attention_heads": shape["hidden_size"] // 64, "num_key_value_heads": 1, "head_dim": 64}
    heads |= {"num_key_value_heads": 3} if heads["num_attention_heads"] % 3 == 0 else {}
    model: Any = LlamaForCausalLM(LlamaConfig(**shape, **heads, tie_word_embeddings=True)).eval()
    select_tree_attention(model)
    compute = ModelConfig(precision="bfloat16" if dtype == torch.bfloat16 else "float32")
    return LocalEngine(
        model,
        prefill=partial(prefill_tree, model, compute),
        head=head_of(model),
        decode=lambda ids: "",
        compute_dtype=dtype,
    )


def requests_of(rows: int, tokens: int, vocabulary: int) -> list[Request]:
    rng = np.random.default_rng(rows)
    prompts = [tuple(rng.integers(0, vocabulary, PROMPT).tolist()) for _ in range(min(rows, PROMPTS))]
    return [Request(prompt_ids=prompts[i % len(prompts)], max_tokens=tokens, seed=i) for i in range(rows)]


def compared(shape: dict[str, int], precision: str, rows: int, tokens: int, rounds: int) -> dict[str, Any]:
    """Medians of CPU seconds in turn, and plain / packed of each round."""
    engine = engine_of(shape, DTYPES[precision])
    asked = requests_of(rows, tokens, shape["vocab_size"])
    spent: dict[str, list[float]] = {"packed": [], "plain": []}
    for number in range(rounds + 1):
        for name, seconds in spent.items():
            with patch.object(decoder, "worth_packing", _never if name == "plain" else decoder.worth_packing):
                began = time.process_time()
                engine.generate(asked, Sampling())
                if number:  # the first is a warm-up
                    seconds.append(time.process_time() - began)
    ratios = [plain / packed for plain, packed in zip(spent["plain"], spent["packed"], strict=True)]
    return {
        "precision": precision,
        "rows": rows,
        "tokens": tokens,
        "median_cpu_s": {name: statistics.median(seconds) for name, seconds in spent.items()},
        "tokens_per_cpu_s": {
            name: rows * tokens / statistics.median(seconds) for name, seconds in spent.items()
        },
        "cpu_time_ratio": statistics.median(ratios),
        "cpu_time_ratio_range": [min(ratios), max(ratios)],
    }


def _never(weight: torch.Tensor) -> bool:
    return False


def best_gflops(dtype: torch.dtype) -> float:
    """Of a product of 1,024 by 1,024 by 1,024."""
    left, right = (torch.randn(1024, 1024).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(7):
        began = time.process_time()
        left @ right
        seconds.append(time.process_time() - began)
    return 2 * 1024**3 / min(seconds) / 1e9


def test_decoding(benchmark_mode: bool, record: Callable[[str, dict], None]) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    shape, tokens, rounds = (SHAPE, 24, 3) if benchmark_mode else (SMALL, 3, 1)
    sizes = (8, 64, 256) if benchmark_mode else (3,)
    try:
        best = {name: best_gflops(dtype) for name, dtype in DTYPES.items()}
        cases = [compared(shape, precision, rows, tokens, rounds) for precision in DTYPES for rows in sizes]
    finally:
        torch.set_num_threads(threads)
    assert all(case["cpu_time_ratio"] > 0 for case in cases)
    record("decode_packed_cpu", {"shape": shape, "rounds": rounds, "best_gflops": best, "cases": cases})
