"""Sampling on a CPU, one thread: the local engine against transformers' `generate` on the same prompts.

Times are taken in turn in one process; peak memory in a process for each side:

    python benchmarks/bench_rollout.py NAME '{"prompt": 64, "steps": 3}'
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from g2rpo_fast.engine import prefill_tree
from g2rpo_fast.model import ModelConfig
from g2rpo_fast.model.head import head_of
from g2rpo_fast.model.load import select_tree_attention
from g2rpo_fast.rollout.local import LocalEngine
from g2rpo_fast.types import Request, Sampling

Side = Callable[[], int]
"""Samples once; returns how many tokens."""


def tiny_model() -> Any:
    """Qwen3, 2 layers, 0.4M parameters, random weights."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=40,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=384,
        tie_word_embeddings=True,
        max_position_embeddings=2048,
    )
    return Qwen3ForCausalLM(config).eval()


def prompts_of(num_prompts: int, length: int) -> list[tuple[int, ...]]:
    rng = np.random.default_rng(length)
    return [tuple(rng.integers(8, 40, length).tolist()) for _ in range(num_prompts)]


def local(num_prompts: int, group: int, prompt: int, completions: list[int]) -> Side:
    """The local engine; row i samples `completions[i % len(completions)]` tokens."""
    model = tiny_model()
    select_tree_attention(model)
    engine = LocalEngine(
        model,
        prefill=partial(prefill_tree, model, ModelConfig()),
        head=head_of(model),
        decode=lambda ids: "",
    )
    rows = [p for p in prompts_of(num_prompts, prompt) for _ in range(group)]
    requests = [
        Request(prompt_ids=p, max_tokens=completions[i % len(completions)], seed=i)
        for i, p in enumerate(rows)
    ]
    return lambda: sum(len(c.token_ids) for c in engine.generate(requests, Sampling()))


def generate(num_prompts: int, group: int, prompt: int, completions: list[int]) -> Side:
    """transformers' `generate` on the prompts, each repeated; the longest completion for all rows."""
    model = tiny_model()
    ids = torch.tensor(prompts_of(num_prompts, prompt)).repeat_interleave(group, 0)
    length = max(completions)
    call = partial(
        model.generate,
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=True,
        max_new_tokens=length,
        min_new_tokens=length,
        pad_token_id=0,
        eos_token_id=1,
    )
    return lambda: call()[:, prompt:].numel()


SIDES: dict[str, Callable[..., Side]] = {"local": local, "generate": generate}


def compare(rounds: int, **case: Any) -> dict[str, Any]:
    """Medians of wall and process time in turn, peak memory of each, ratios (generate / local)."""
    torch.set_num_threads(1)
    calls = {name: side(**case) for name, side in SIDES.items()}
    wall: dict[str, list[float]] = {name: [] for name in calls}
    cpu: dict[str, list[float]] = {name: [] for name in calls}
    tokens = {name: call() for name, call in calls.items()}
    for _ in range(rounds):
        for name, call in calls.items():
            started = time.perf_counter(), time.process_time()
            call()
            wall[name].append(time.perf_counter() - started[0])
            cpu[name].append(time.process_time() - started[1])
    memory = {name: _peak_above_base(name, case) for name in calls}
    figures = {
        name: {
            "median_s": statistics.median(wall[name]),
            "median_cpu_s": statistics.median(cpu[name]),
            "min_cpu_s": min(cpu[name]),
            "max_cpu_s": max(cpu[name]),
            "tokens": tokens[name],
            "tokens_per_cpu_s": tokens[name] / statistics.median(cpu[name]),
            "peak_above_base_mib": memory[name],
        }
        for name in calls
    }
    ratios = [theirs / ours for ours, theirs in zip(cpu["local"], cpu["generate"])]
    return {
        **case,
        **figures,
        "rounds": rounds,
        "time_ratio": figures["generate"]["median_s"] / figures["local"]["median_s"],
        "cpu_time_ratio": statistics.median(ratios),
        "cpu_time_ratio_range": [min(ratios), max(ratios)],
        "peak_memory_ratio": memory["generate"] / memory["local"],
    }


def _peak_above_base(name: str, case: dict[str, Any]) -> float:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, __file__, name, json.dumps(case)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name} failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _memory_side(name: str, case: dict[str, Any]) -> float:
    """MiB that sampling adds to the peak, model and one small warm-up excluded."""
    torch.set_num_threads(1)
    SIDES[name](**{**case, "num_prompts": 1, "group": 2, "prompt": 4, "completions": [2]})()
    call = SIDES[name](**case)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew (ru_maxrss would be the parent's)
    base = _peak_mib()
    call()
    return _peak_mib() - base


def _peak_mib() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def test_rollout_against_generate(benchmark_mode: bool, record: Callable[[str, dict], None]) -> None:
    """4 prompts x 16 completions of 64 forced tokens."""
    lengths, rounds, completion = ((64, 256, 1024), 11, 64) if benchmark_mode else ((16,), 1, 4)
    cases = [
        compare(rounds, num_prompts=4, group=16, prompt=length, completions=[completion])
        for length in lengths
    ]
    assert all(case["local"]["tokens"] == case["generate"]["tokens"] for case in cases)
    record("rollout_vs_generate_cpu", {"cases": cases})


def test_rollout_of_short_prompts(benchmark_mode: bool, record: Callable[[str, dict], None]) -> None:
    """16 prompts of 10 tokens x 12, 36 to 66 tokens each: little to share, rows end one by one."""
    size = {"num_prompts": 16, "group": 12} if benchmark_mode else {"num_prompts": 2, "group": 2}
    spread = np.random.default_rng(0).integers(36, 67, 192).tolist()
    case = compare(11 if benchmark_mode else 1, **size, prompt=10, completions=spread)
    assert case["local"]["tokens"] < case["generate"]["tokens"]
    record("rollout_short_prompts_cpu", case)


if __name__ == "__main__":
    print(json.dumps(_memory_side(sys.argv[1], json.loads(sys.argv[2]))))
