"""Tree attention against the same rows unshared, at group shapes that gain much, little and nothing.

On CUDA: bfloat16, H = 32, K = 8, E = 128, against flash attention on repeated rows (always), PrefixGrouper
and, at two shapes, FlexAttention with a BlockMask from our own tile lists. On a CPU: float32, H = 8, K = 2,
E = 64, shapes an eighth as long. All sides give the same outputs for each row's last token; that is checked
first.
"""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass

import numpy as np
import pytest
import torch

from attention_sides import Side, Tokens, cascade, peers_of, tokens_of, triton, unshared, varlen
from g2rpo_fast.tree import plan_trees
from g2rpo_fast.types import Sequences, TreePlan
from peers import usable
from provenance import Record
from timing import Deadline, ceilings, interleaved, peak_mib, spread_ms


@dataclass(frozen=True)
class Shape:
    """A group: prompt P, guidance of `guided` members, G completions of `completion` tokens."""

    prompt: int
    guidance: int
    guided: int
    group: int
    completion: int

    def __str__(self) -> str:
        return f"p{self.prompt}_l{self.guidance}x{self.guided}_g{self.group}_r{self.completion}"

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
FLEX_SHAPES = (SHAPES[0], SHAPES[5])
ON_GPU = torch.cuda.is_available()
HEADS, KV_HEADS, WIDTH = (32, 8, 128) if ON_GPU else (8, 2, 64)
OURS = {"triton", "cascade", "unshared", "flash_varlen"}
TOLERANCE = 2e-2 if ON_GPU else 1e-5
"""Of the norm of the outputs: bfloat16, float32."""


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_tree_attention(benchmark_mode: bool, deadline: Deadline, record: Record, shape: Shape) -> None:
    """Forward, and forward with backward, in turn."""
    compare(shape, "", benchmark_mode, deadline, record)


@pytest.mark.parametrize("shape", FLEX_SHAPES, ids=str)
def test_flex(benchmark_mode: bool, deadline: Deadline, record: Record, shape: Shape) -> None:
    """The same with FlexAttention, which compiles for each shape longer than all the rest takes."""
    if not ON_GPU:
        pytest.skip("FlexAttention has no backward on a CPU")
    compare(shape, "_flex", benchmark_mode, deadline, record)


def compare(shape: Shape, suffix: str, benchmark_mode: bool, deadline: Deadline, record: Record) -> None:
    device, dtype = ("cuda", torch.bfloat16) if ON_GPU else ("cpu", torch.float32)
    factor, rounds = ((1 if ON_GPU else 8), 7 if ON_GPU else 5) if benchmark_mode else (64, 1)
    torch.set_num_threads(1)
    given = shape.over(factor)
    plan = tree_of(given)
    tokens = tokens_of(plan, given.prompt, HEADS, KV_HEADS, WIDTH, device)
    sides, skipped = sides_of(tokens, deadline, with_flex=bool(suffix))
    skipped |= leave_out_wrong(sides)
    ceiling = ceilings(device, dtype, small=not benchmark_mode)
    cases = rows_of(sides, tokens, rounds, ceiling["matmul_tflops"])
    token_ratio = sum(given.lengths()) / len(plan.token_S)
    assert token_ratio > 1
    figures = {
        **asdict(given),
        "positions": len(plan.token_S),
        "token_ratio": token_ratio,
        "pair_ratio": tokens.row_pairs / tokens.tree_pairs,
        "heads": HEADS,
        "kv_heads": KV_HEADS,
        "width": WIDTH,
        "dtype": str(dtype).removeprefix("torch."),
        "ceilings": ceiling,
        "sides": cases,
        "skipped": skipped,
    }
    record(f"tree_attention_{device}_{given}{suffix}", figures)


def sides_of(
    tokens: Tokens, deadline: Deadline, *, with_flex: bool
) -> tuple[dict[str, Side], dict[str, str]]:
    """Ours, the plain form and on CUDA flash attention on repeated rows always; of the peers those that ran
    forward and backward."""
    sides = {"triton": triton(tokens), "flash_varlen": varlen(tokens)} if ON_GPU else {}
    sides |= {"cascade": cascade(tokens), "unshared": unshared(tokens)}
    peers, skipped = usable(peers_of(tokens, with_flex=with_flex), deadline, probe=Side.with_backward)
    return sides | peers, skipped


def leave_out_wrong(sides: dict[str, Side]) -> dict[str, str]:
    """Takes peers whose outputs are not those of `cascade` out of `sides`; says which. Ours must be right."""
    wanted_GHE = sides["cascade"].last_GHE(sides["cascade"].run()).detach().double()
    assert wanted_GHE.norm() > 0
    wrong: dict[str, str] = {}
    for name, side in sides.items():
        off_GHE = side.last_GHE(side.run()).detach().double() - wanted_GHE
        off = float(off_GHE.norm() / wanted_GHE.norm())
        if not off < TOLERANCE:
            assert name not in OURS, f"{name}: wanted outputs within {TOLERANCE}, got {off}"
            wrong[name] = f"wanted outputs within {TOLERANCE} of the norm, got {off:.2g}"
    for name in wrong:
        del sides[name]
    return wrong


def rows_of(sides: dict[str, Side], tokens: Tokens, rounds: int, matmul_tflops: float) -> list[dict]:
    """A row of figures for each side. Operations per pair: two products forward; speed-ups are over
    `unshared`, forward with backward."""
    forward = interleaved({name: side.run for name, side in sides.items()}, rounds)
    both = interleaved({name: side.with_backward for name, side in sides.items()}, rounds)
    plain = statistics.median(both["unshared"])
    tflop = {name: 4e-12 * HEADS * WIDTH * side.pairs for name, side in sides.items()}
    return [
        {
            "side": name,
            **spread_ms(forward[name], "forward_"),
            **spread_ms(both[name], "both_"),
            "speedup": plain / statistics.median(both[name]),
            "forward_tflops": tflop[name] / statistics.median(forward[name]),
            "forward_matmul_percent": 100 * tflop[name] / statistics.median(forward[name]) / matmul_tflops,
            "peak_mib": peak_mib(side.with_backward),
        }
        for name, side in sides.items()
    ]


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
