"""Planning time of one step's prefix trees: C++ against its Python twin, one core.

Every group shares a prompt, a quarter of its rows also a guidance trunk; the rest is random. Runs of the two
alternate, several of C++ to one of the twin, at the same size. Medians, with the extremes, of wall and of CPU
time; the ratio is of CPU times, which other work on the machine disturbs less.

Dimension key: R rows, N tokens of all rows end to end.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from g2rpo_fast.tree import plan_trees
from g2rpo_fast.types import Sequences, TreePlan


@dataclass(frozen=True, kw_only=True)
class Shape:
    groups: int
    rows: int
    """Per group."""
    tokens: int
    """Per row."""
    prompt: int
    trunk: int
    vocab: int


FULL = Shape(groups=64, rows=16, tokens=4096, prompt=1024, trunk=256, vocab=32_000)
SMALL = Shape(groups=4, rows=8, tokens=64, prompt=16, trunk=8, vocab=100)


def make_sequences(shape: Shape) -> Sequences:
    rng = np.random.default_rng(0)
    ids = rng.integers(0, shape.vocab, (shape.groups, shape.rows, shape.tokens), dtype=np.int32)
    guided = shape.rows // 4
    response = shape.prompt + shape.trunk
    ids[:, :, : shape.prompt] = ids[:, :1, : shape.prompt]
    ids[:, :guided, shape.prompt : response] = ids[:, :1, shape.prompt : response]
    trained = np.zeros(ids.shape, dtype=np.bool_)
    trained[:, :, shape.prompt :] = True
    return Sequences(
        ids_N=ids.reshape(-1),
        ptr_R1=np.arange(shape.groups * shape.rows + 1, dtype=np.int64) * shape.tokens,
        trained_N=trained.reshape(-1),
        group_R=np.repeat(np.arange(shape.groups, dtype=np.int32), shape.rows),
    )


@dataclass(frozen=True)
class Timing:
    wall_s: float
    cpu_s: float


def timed(plan: Callable[[], list[TreePlan]]) -> Timing:
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    plan()
    return Timing(time.perf_counter() - wall_s, time.process_time() - cpu_s)


def summary(timings: list[Timing]) -> dict[str, float]:
    wall_s = [timing.wall_s for timing in timings]
    return {
        "runs": len(timings),
        "wall_ms": round(1e3 * statistics.median(wall_s), 2),
        "wall_min_ms": round(1e3 * min(wall_s), 2),
        "wall_max_ms": round(1e3 * max(wall_s), 2),
        "cpu_ms": round(1e3 * statistics.median(timing.cpu_s for timing in timings), 2),
    }


def measure(sequences: Sequences, budget: int | None, cpp_runs: int, twin_runs: int) -> dict[str, object]:
    """`cpp_runs` of C++ before each run of the twin."""
    cpp: list[Timing] = []
    twin: list[Timing] = []
    plans = plan_trees(sequences, token_budget=budget)  # warm: pages, caches
    for _ in range(twin_runs):
        for _ in range(cpp_runs):
            cpp.append(timed(lambda: plan_trees(sequences, token_budget=budget)))
        twin.append(timed(lambda: plan_trees(sequences, token_budget=budget, impl="python")))
    positions = sum(len(plan.token_S) for plan in plans)
    unshared_tokens = sum(plan.unshared_tokens for plan in plans)
    assert positions < unshared_tokens, "nothing is shared: not the case to measure"
    return {
        "token_budget": budget,
        "plans": len(plans),
        "positions": positions,
        "unshared_tokens": unshared_tokens,
        "edges": sum(len(plan.source_T) for plan in plans),
        "cpp": summary(cpp),
        "python": summary(twin),
        "twin_over_cpp": round(summary(twin)["cpu_ms"] / summary(cpp)["cpu_ms"], 1),
    }


def test_prefix_tree_planning(benchmark_mode: bool, record: Callable[[str, dict], None]) -> None:
    shape = FULL if benchmark_mode else SMALL
    budgets = (None, 65_536, 8192) if benchmark_mode else (None, 256)
    runs = (7, 2) if benchmark_mode else (2, 1)
    sequences = make_sequences(shape)
    results = [measure(sequences, budget, *runs) for budget in budgets]
    record("prefix_tree", {"shape": asdict(shape), "tokens": len(sequences.ids_N), "budgets": results})
