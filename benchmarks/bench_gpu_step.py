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
from collections.abc import Callable, Sequence
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
MICRO_BATCHES = (36_000, 26_000, 18_000, 9_000)
"""Tokens; each side takes the largest that fits."""
MOST_KEPT = 1 << 15
"""Tokens of a row; beyond, layers are computed again in backward: their activations would not fit."""
NORM_TOLERANCE = 5e-2
"""Between the gradient norms of two sides in bfloat16."""


def sides_of(config: dict[str, int], rollouts: Rollouts) -> dict[str, Peer]:
    """Steps of `budget` tokens a micro-batch."""
    attention = "triton" if ON_GPU else "cascade"
    tree = partial(ours, config, rollouts)
    return {
        "ours": Peer(partial(tree, attention=attention, fused=True)),
        "padded_liger": Peer(
            partial(padded, config, rollouts, fused=True),
            needs="liger_kernel",
            cuda_only="Liger's kernels run on CUDA only",
        ),
        "padded": Peer(partial(padded, config, rollouts, fused=False)),
        "ours_unfused": Peer(partial(tree, attention=attention, fused=False)),
        "ours_cascade": Peer(partial(tree, attention="cascade", fused=True)),
    }


@pytest.mark.parametrize("shape", [*SHARED, *PACKED], ids=str)
def test_step(benchmark_mode: bool, deadline: Deadline, record: Record, shape: Shape) -> None:
    """Forward, backward, clipping and AdamW, on rollouts of forced lengths."""
    sides = ("ours", "padded_liger") if shape in SHARED else ("ours",)
    compare(shape, sides, "", benchmark_mode, deadline, record)


def test_step_in_other_ways(benchmark_mode: bool, deadline: Deadline, record: Record) -> None:
    """What ours would be without its parts, and padded rows without Liger's operators."""
    sides = ("padded", "ours_unfused", "ours_cascade")
    compare(SHARED[0], sides, "_other_ways", benchmark_mode, deadline, record)


def compare(
    shape: Shape,
    names: Sequence[str],
    suffix: str,
    benchmark_mode: bool,
    deadline: Deadline,
    record: Record,
) -> None:
    """Measures the sides, and puts on record what there is after each."""
    shared = shape in SHARED
    config, given = (QWEN3_0_6B, shape) if benchmark_mode and ON_GPU else (TINY, SMALL)
    if given is SMALL and not shared:
        given = replace(SMALL, group=1)
    budgets = MICRO_BATCHES if given is shape and shared else (given.tree_tokens // given.prompts,)
    rollouts, cases, skipped = make_rollouts(given, config["vocab_size"]), [], {}
    ceiling = ceilings(
        "cuda" if ON_GPU else "cpu", torch.bfloat16 if ON_GPU else torch.float32, small=not ON_GPU
    )
    figures = {
        **asdict(given),
        "model": config,
        "token_ratio": given.row_tokens / given.tree_tokens,
        "ceilings": ceiling,
        "sides": cases,
        "skipped": skipped,
    }
    sides = sides_of(config, rollouts)
    for name in names:
        why = unasked(sides[name], deadline)
        if why is not None:
            skipped[name] = why
            continue
        encoded = given.tree_tokens if name.startswith("ours") else given.row_tokens
        result = largest_that_fits(sides[name].make, budgets, given, config, encoded)
        cases.append(
            {"side": name, **result, "mfu_percent": 100 * result.pop("tflops") / ceiling["matmul_tflops"]}
        )
        record(f"step_{'cuda' if ON_GPU else 'cpu_small'}_{given}{suffix}", figures)
        assert result["grad_norm"] == pytest.approx(cases[0]["grad_norm"], rel=NORM_TOLERANCE), name
    if not cases:
        pytest.skip("no time left")


def largest_that_fits(
    make: Callable[..., Callable[[], float]],
    budgets: Sequence[int],
    shape: Shape,
    config: dict[str, int],
    encoded: int,
) -> dict[str, float]:
    """`measured` with the first of the micro-batches that the memory holds."""
    for budget in budgets:
        try:
            again = {"checkpointing": True} if shape.prompt + shape.completion > MOST_KEPT else {}
            step = partial(make, budget=budget, **again)
            return {"micro_batch_tokens": budget, **measured(step, shape, config, encoded)}
        except torch.OutOfMemoryError:
            if budget == budgets[-1]:
                raise
        finally:
            free()
    raise ValueError("budgets: wanted at least one")


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
