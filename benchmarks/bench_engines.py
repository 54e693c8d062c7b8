"""Sampling on a CPU, one thread, float32: the local engine, vLLM and transformers' `generate`.

A random Qwen3 of 29M parameters (8 layers, width 512, vocabulary 8192); completions of forced, equal length.
Wall-clock times are taken in turn. Before each of its turns vLLM gets the weights again, as before a training
step: else it would find the prompts of the last turn in its prefix cache. Peak memory is that of the process
that generates (libraries, weights and caches; the trainer's copy of the weights not), in one of its own:

    python benchmarks/bench_engines.py NAME FULL '{"num_prompts": 8, ...}'
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from g2rpo_fast.embedded.tokenizer import build_tokenizer
from g2rpo_fast.engine import prefill_tree, sampled_logp
from g2rpo_fast.model import ModelConfig
from g2rpo_fast.model.head import head_of
from g2rpo_fast.model.load import select_tree_attention
from g2rpo_fast.rollout.local import LocalEngine
from g2rpo_fast.rollout.vllm import VllmConfig
from g2rpo_fast.rollout.vllm.engine import VllmEngine
from g2rpo_fast.types import Engine, Request, Sampling
from timing import spread_ms

pytestmark = pytest.mark.skipif(find_spec("vllm") is None, reason="needs vLLM (make vllm-test installs it)")

SIZES: dict[bool, dict[str, int]] = {
    True: {"vocab_size": 8192, "hidden_size": 512, "num_hidden_layers": 8, "intermediate_size": 1536},
    False: {"vocab_size": 256, "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 96},
}
KV_MIB = 256
"""Of vLLM: room for every row of every case."""


class Side:
    """One engine on one case: `run` samples once and returns how many tokens, `renew` comes before."""

    def __init__(
        self, run: Callable[[], int], renew: Callable[[], None] = lambda: None, pid: int = 0
    ) -> None:
        self.run, self.renew, self.pid = run, renew, pid or os.getpid()


def model_of(full: bool) -> Any:
    torch.manual_seed(0)
    config = Qwen3Config(
        **SIZES[full],
        num_attention_heads=8 if full else 4,
        num_key_value_heads=4 if full else 2,
        head_dim=64 if full else 32,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    return Qwen3ForCausalLM(config).eval()


def prompts_of(full: bool, num_prompts: int, length: int) -> list[tuple[int, ...]]:
    rng = np.random.default_rng(length)
    return [tuple(rng.integers(8, SIZES[full]["vocab_size"], length).tolist()) for _ in range(num_prompts)]


def requests_of(full: bool, num_prompts: int, group: int, prompt: int, completion: int) -> list[Request]:
    rows = [p for p in prompts_of(full, num_prompts, prompt) for _ in range(group)]
    return [Request(prompt_ids=p, max_tokens=completion, seed=i) for i, p in enumerate(rows)]


def tokens(engine: Engine, requests: list[Request]) -> int:
    return sum(len(c.token_ids) for c in engine.generate(requests, Sampling()))


def local(stack: ExitStack, full: bool, **case: int) -> Side:
    model = model_of(full)
    select_tree_attention(model)
    engine = LocalEngine(
        model,
        prefill=partial(prefill_tree, model, ModelConfig()),
        head=head_of(model),
        decode=lambda ids: "",
    )
    return Side(partial(tokens, engine, requests_of(full, **case)))


def vllm(stack: ExitStack, full: bool, **case: int) -> Side:
    model = model_of(full)
    select_tree_attention(model)
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    engine = VllmEngine(
        model,
        build_tokenizer("0123456789"),
        VllmConfig(kv_cache_mib=KV_MIB, dtype="float32"),
        logp=partial(sampled_logp, model, ModelConfig()),
        max_rows=case["num_prompts"] * case["group"],
        threads=1,
        log_path=directory / "vllm.log",
        show=lambda line: None,
    )
    stack.callback(engine.close)
    engine.sync(0)
    assert engine.pid is not None
    return Side(partial(tokens, engine, requests_of(full, **case)), partial(engine.sync, 0), engine.pid)


def generate(
    stack: ExitStack, full: bool, *, num_prompts: int, group: int, prompt: int, completion: int
) -> Side:
    """Each prompt repeated for its group, which is what `generate` does with `num_return_sequences` too."""
    model = model_of(full)
    ids = torch.tensor(prompts_of(full, num_prompts, prompt)).repeat_interleave(group, 0)
    call = partial(
        model.generate,
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=True,
        max_new_tokens=completion,
        min_new_tokens=completion,
        pad_token_id=0,
        eos_token_id=1,
    )
    return Side(lambda: call()[:, prompt:].numel())


SIDES: dict[str, Callable[..., Side]] = {"local": local, "vllm": vllm, "generate": generate}


def compare(full: bool, rounds: int, **case: int) -> dict[str, Any]:
    """Tokens/s of each side (median, in turn), how many times generate's that is, peak memory."""
    torch.set_num_threads(1)
    with ExitStack() as stack:
        sides = {name: make(stack, full, **case) for name, make in SIDES.items()}
        counts = {name: side.run() for name, side in sides.items()}
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(rounds):
            for name, side in sides.items():
                side.renew()
                start = time.perf_counter()
                side.run()
                seconds[name].append(time.perf_counter() - start)
    assert len(set(counts.values())) == 1, counts
    slowest = statistics.median(seconds["generate"])
    return {
        **case,
        "rounds": rounds,
        "sides": {
            name: {
                **spread_ms(seconds[name]),
                "tokens_per_s": counts[name] / statistics.median(seconds[name]),
                "times_generate": slowest / statistics.median(seconds[name]),
                "peak_mib": peak_in_own_process(name, full, case),
            }
            for name in sides
        },
    }


def peak_in_own_process(name: str, full: bool, case: dict[str, int]) -> float:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, __file__, name, str(int(full)), json.dumps(case)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name} failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def peak_mib(name: str, full: bool, case: dict[str, int]) -> float:
    torch.set_num_threads(1)
    with ExitStack() as stack:
        side = SIDES[name](stack, full, **case)
        side.run()
        status = Path(f"/proc/{side.pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def test_prompts_of_a_hundred_tokens(benchmark_mode: bool, record: Callable[[str, dict], None]) -> None:
    """8 prompts x 8, 64 tokens each."""
    case = (
        {"num_prompts": 8, "group": 8, "prompt": 100, "completion": 64}
        if benchmark_mode
        else {"num_prompts": 2, "group": 2, "prompt": 40, "completion": 4}
    )
    record("engines_cpu", compare(benchmark_mode, 5 if benchmark_mode else 1, **case))


def test_a_long_prompt_shared_by_many(benchmark_mode: bool, record: Callable[[str, dict], None]) -> None:
    """2 prompts of 1024 tokens x 32, 64 tokens each: what sharing a prompt is worth."""
    case = (
        {"num_prompts": 2, "group": 32, "prompt": 1024, "completion": 64}
        if benchmark_mode
        else {"num_prompts": 1, "group": 4, "prompt": 90, "completion": 4}
    )
    record("engines_long_prompt_cpu", compare(benchmark_mode, 3 if benchmark_mode else 1, **case))


if __name__ == "__main__":
    print(json.dumps(peak_mib(sys.argv[1], bool(int(sys.argv[2])), json.loads(sys.argv[3]))))
