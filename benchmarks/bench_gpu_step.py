"""A whole optimiser step of a model in Qwen3-0.6B's shape on a GPU, and its rollout.

Against the strongest padded baseline (Hugging Face with Liger-Kernel's fused operators and loss) at token
ratios of 1.9 and 4, and by itself at the shapes of a published one-GPU recipe: one packed row of 16,384 or
65,536 tokens a micro-batch, where nothing is shared. Without a GPU each case runs once, tiny.

MFU counts 6 operations a parameter and token encoded, and attention's 12 a pair, width and layer, against the
measured product ceiling; recomputation is not counted.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial

import pytest
import torch

from gpu_step_sides import (
    ON_GPU,
    QWEN3_0_6B,
    TINY,
    Rollouts,
    Shape,
    make_rollouts,
    ours,
    padded,
    rollout_generate,
    rollout_local,
)
from peers import Peer, unasked
from provenance import Record
from timing import Deadline, ceilings, interleaved

SHARED = (Shape(16, 16, 512, 512), Shape(16, 16, 2048, 512))
PACKED = (Shape(2, 1, 1, 16_383), Shape(2, 1, 1, 65_535))
"""Two micro-batches of one row."""
SMALL = Shape(2, 4, 24, 16)
STEPS = 2
MOST_KEPT = 1 << 15
"""Tokens of a micro-batch; beyond, layers are computed again in backward: their activations would not fit."""
NORM_TOLERANCE = 5e-2
"""Between the gradient norms of two sides in bfloat16."""


def sides_of(config: dict[str, int], rollouts: Rollouts, budget: int, *, shared: bool) -> dict[str, Peer]:
    """In the order of worth: a deadline cuts off the rest. `budget`: tokens of a micro-batch."""
    attention = "triton" if ON_GPU else "cascade"
    tree = partial(ours, config, rollouts, budget=budget, checkpointing=budget > MOST_KEPT)
    sides = {"ours": Peer(partial(tree, attention=attention, fused=True))}
    if shared:
        sides["padded_liger"] = Peer(
            partial(padded, config, rollouts, budget=budget, fused=True),
            needs="liger_kernel",
            cuda_only="Liger's kernels run on CUDA only",
        )
        sides["padded"] = Peer(partial(padded, config, rollouts, budget=budget, fused=False))
    sides["ours_unfused"] = Peer(partial(tree, attention=attention, fused=False))
    sides["ours_cascade"] = Peer(partial(tree, attention="cascade", fused=True))
    return sides


@pytest.mark.parametrize("shape", [*SHARED, *PACKED], ids=str)
def test_step(benchmark_mode: bool, deadline: Deadline, record: Record, shape: Shape) -> None:
    """Forward, backward, clipping and AdamW, on rollouts of forced lengths."""
    shared = shape in SHARED
    config, given = (QWEN3_0_6B, shape) if benchmark_mode and ON_GPU else (TINY, SMALL)
    if given is SMALL and not shared:
        given = replace(SMALL, group=1)
    rollouts = make_rollouts(given, config["vocab_size"])
    budget = given.tree_tokens // given.prompts * (2 if shared else 1)
    results, skipped = {}, {}
    for name, side in sides_of(config, rollouts, budget, shared=shared).items():
        skipped[name] = unasked(side, deadline)
        if skipped[name] is None:
            encoded = given.tree_tokens if name.startswith("ours") else given.row_tokens
            try:
                results[name] = measured(side.make, given, config, encoded)
            except torch.OutOfMemoryError as error:
                if name == "ours":
                    raise
                skipped[name] = str(error).splitlines()[0][:200]
            free()
    if not results:
        pytest.skip("no time left")
    norms = {name: result["grad_norm"] for name, result in results.items()}
    for name, norm in norms.items():
        assert norm == pytest.approx(norms["ours"], rel=NORM_TOLERANCE), name
    ceiling = ceilings(
        "cuda" if ON_GPU else "cpu", torch.bfloat16 if ON_GPU else torch.float32, small=not ON_GPU
    )
    figures = {
        **asdict(given),
        "model": config,
        "token_ratio": given.row_tokens / given.tree_tokens,
        "ceilings": ceiling,
        "sides": [
            {"side": name, **result, "mfu_percent": 100 * result.pop("tflops") / ceiling["matmul_tflops"]}
            for name, result in results.items()
        ],
        "skipped": {name: why for name, why in skipped.items() if why is not None},
    }
    record(f"step_{'cuda' if ON_GPU else 'cpu_small'}_{given}", figures)


def measured(
    make: Callable[[], Callable[[], float]], shape: Shape, config: dict[str, int], encoded: int
) -> dict[str, float]:
    """Median seconds of a step that encodes so many tokens; tokens, operations a second; memory."""
    step = make()
    norm = step()
    if ON_GPU:
        torch.cuda.reset_peak_memory_stats()
    seconds = statistics.median(interleaved({"step": step}, STEPS, warm=True, long=True)["step"])
    peak = torch.cuda.max_memory_allocated() / 2**30 if ON_GPU else 0.0
    return {
        "grad_norm": norm,
        "step_s": seconds,
        "row_tokens_per_s": shape.row_tokens / seconds,
        "tflops": operations(config, shape, encoded) / seconds / 1e12,
        "peak_gib": peak,
    }


def free() -> None:
    """Gives back what a side held."""
    gc.collect()
    if ON_GPU:
        torch.cuda.empty_cache()


def operations(config: dict[str, int], shape: Shape, encoded: int) -> float:
    """Of a step that encodes so many tokens: products of the layers, of the head, of attention."""
    width, layers, heads = config["hidden_size"], config["num_hidden_layers"], config["num_attention_heads"]
    mixed = config["head_dim"] * (2 * heads + 2 * config["num_key_value_heads"])
    layer = width * (mixed + 3 * config["intermediate_size"])
    trained = shape.rows * shape.completion
    length = shape.prompt + shape.completion
    pairs = shape.rows * length**2 / 2
    if encoded == shape.tree_tokens:
        pairs -= shape.prompts * (shape.group - 1) * shape.prompt**2 / 2
    head = width * config["vocab_size"]
    return 6 * (encoded * layers * layer + trained * head) + 12 * pairs * layers * heads * config["head_dim"]


def test_rollout(benchmark_mode: bool, deadline: Deadline, record: Record) -> None:
    """Sampling of all rows by the local engine, and by `generate` an eighth of the tokens."""
    config, shape = (QWEN3_0_6B, SHARED[0]) if benchmark_mode and ON_GPU else (TINY, SMALL)
    short = replace(shape, completion=max(1, shape.completion // 8))
    rates = {}
    for name, make, given in (("local", rollout_local, shape), ("generate", rollout_generate, short)):
        if deadline.passed():
            continue
        run = make(config, make_rollouts(given, config["vocab_size"]))
        assert run() == given.rows * given.completion
        rates[name] = (
            given.rows * given.completion / interleaved({"run": run}, 1, warm=True, long=True)["run"][0]
        )
    record(
        f"rollout_{'cuda' if ON_GPU else 'cpu_small'}_{shape}",
        {**asdict(shape), "model": config, "generate_tokens": short.completion, "tokens_per_s": rates},
    )
