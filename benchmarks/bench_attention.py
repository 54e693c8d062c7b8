"""Tree attention against the same rows unshared, at group shapes that gain much, little and nothing.

On CUDA: bfloat16, H = 32, K = 8, E = 128, against flash attention on repeated rows and FlexAttention with a
BlockMask from our own tile lists. On a CPU: float32, H = 8, K = 2, E = 64, shapes an eighth as long.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from g2rpo_kernels import cascade_plan, tree_attention
from g2rpo_kernels.tree_attention import tile_plan
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from g2rpo_fast.tree import plan_trees
from g2rpo_fast.types import Sequences, TreePlan
from timing import medians


@dataclass(frozen=True)
class Shape:
    """A group: prompt P, guidance of `guided` members, G completions of `completion` tokens."""

    prompt: int
    guidance: int
    guided: int
    group: int
    completion: int

    def over(self, factor: int) -> Shape:
        return Shape(
            self.prompt // factor, self.guidance // factor, self.guided, self.group, self.completion // factor
        )

    def lengths(self) -> list[int]:
        return [
            self.prompt + (self.guidance if member < self.guided else 0) + self.completion
            for member in range(self.group)
        ]


SHAPES = (
    Shape(1024, 0, 0, 8, 256),
    Shape(512, 0, 0, 8, 1024),
    Shape(1024, 512, 4, 8, 1024),
    Shape(1024, 1024, 4, 8, 512),
    Shape(256, 512, 4, 8, 2048),
    Shape(2048, 0, 0, 16, 512),
    Shape(8192, 0, 0, 16, 1024),
)
Run = Callable[[], Tensor]


def test_tree_attention(benchmark_mode: bool, record: Callable[[str, dict], None]) -> None:
    """Forward, and forward with backward, interleaved medians of each implementation."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    on_gpu = device == "cuda"
    factor, rounds = ((1 if on_gpu else 8), 7) if benchmark_mode else (64, 1)
    heads, kv_heads, width = (32, 8, 128) if on_gpu else (8, 2, 64)
    torch.set_num_threads(1)
    cases = [measured(shape.over(factor), device, heads, kv_heads, width, rounds) for shape in SHAPES]
    assert all(case["token_ratio"] > 1 for case in cases)
    record(f"tree_attention_{device}", {"heads": heads, "kv_heads": kv_heads, "width": width, "cases": cases})


def measured(shape: Shape, device: str, heads: int, kv_heads: int, width: int, rounds: int) -> dict:
    plan = tree_of(shape)
    lengths = shape.lengths()
    pairs = pairs_of(plan)
    unshared_pairs = sum(n * (n + 1) // 2 for n in lengths)
    sides = sides_of(plan, lengths, device, heads, kv_heads, width)
    forward = medians(sides, rounds)
    both = medians({name: with_backward(run) for name, run in sides.items()}, rounds)
    flops = 4 * heads * width * pairs
    return {
        **vars(shape),
        "positions": len(plan.token_S),
        "token_ratio": sum(lengths) / len(plan.token_S),
        "pair_ratio": unshared_pairs / pairs,
        "forward_ms": {name: 1e3 * s for name, s in forward.items()},
        "forward_backward_ms": {name: 1e3 * s for name, s in both.items()},
        "forward_useful_tflops": {
            name: flops / s / 1e12 for name, s in forward.items() if name != "unshared"
        },
        "speedup": {name: both["unshared"] / seconds for name, seconds in both.items() if name != "unshared"},
    }


def tree_of(shape: Shape) -> TreePlan:
    """The group's plan. Completions share nothing: each begins with a token of its own."""
    rng = np.random.default_rng(0)
    prompt, trace = (rng.integers(100, 1000, n) for n in (shape.prompt, shape.guidance))
    rows = [
        np.concatenate(
            [prompt, trace if m < shape.guided else [], [m], rng.integers(100, 1000, shape.completion - 1)]
        )
        for m in range(shape.group)
    ]
    ids = np.concatenate(rows).astype(np.int32)
    sequences = Sequences(
        ids_N=ids,
        ptr_R1=np.cumsum([0, *map(len, rows)], dtype=np.int64),
        trained_N=np.zeros(len(ids), np.bool_),
        group_R=np.zeros(len(rows), np.int32),
    )
    (plan,) = plan_trees(sequences, whole=True)
    return plan


def pairs_of(plan: TreePlan) -> int:
    """Visible (query, key) pairs: each position sees its path."""
    return int((plan.position_S.astype(np.int64) + 1).sum())


def sides_of(
    plan: TreePlan, lengths: list[int], device: str, heads: int, kv_heads: int, width: int
) -> dict[str, Run]:
    """Forwards by name. Unshared rows are one padded causal call, the strongest plain form."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    size, scale = len(plan.token_S), width**-0.5
    make = lambda *shape: torch.randn(*shape, device=device, dtype=dtype, requires_grad=True)  # noqa: E731
    q, k, v = make(size, heads, width), make(size, kv_heads, width), make(size, kv_heads, width)
    end_S = torch.from_numpy(plan.end_S).to(device)
    cascade = cascade_plan(torch.from_numpy(plan.end_S), device=torch.device(device))
    rows, longest = len(lengths), max(lengths)
    wide = [make(rows, h, longest, width) for h in (heads, kv_heads, kv_heads)]
    sides: dict[str, Run] = {
        "cascade": lambda: tree_attention(q, k, v, end_S, scale=scale, impl="cascade", plan=cascade),
        "unshared": lambda: scaled_dot_product_attention(*wide, is_causal=True, enable_gqa=True),
    }
    if device == "cuda":
        sides |= cuda_sides(q, k, v, end_S, scale)
    return sides


def cuda_sides(q: Tensor, k: Tensor, v: Tensor, end_S: Tensor, scale: float) -> dict[str, Run]:
    from torch.nn.attention.flex_attention import flex_attention

    from flex_mask import block_mask

    tiles = tile_plan(end_S)
    mask = block_mask(tiles)
    flex = torch.compile(flex_attention)

    def flex_run() -> Tensor:
        batch = [x.transpose(0, 1)[None] for x in (q, k, v)]
        return flex(*batch, block_mask=mask, scale=scale, enable_gqa=True)

    return {
        "triton": lambda: tree_attention(q, k, v, end_S, scale=scale, impl="triton", tiles=tiles),
        "flex": flex_run,
    }


def with_backward(run: Run) -> Run:
    def both() -> Tensor:
        out = run()
        out.backward(torch.ones_like(out))
        return out

    return both
