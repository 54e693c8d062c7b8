"""Planning time of one step's prefix trees: C++ against its Python twin, one core.

Every group shares a prompt, a quarter of its rows also a guidance trunk; the rest is random. Runs of the two
alternate, several of C++ to one of the twin, at the same size. Medians, with the extremes.

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


def timed(plan: Callable[[], list[TreePlan]]) -> tuple[float, list[TreePlan]]:
    start = time.perf_counter()
    plans = plan()
    return time.perf_counter() - start, plans


def summary(times_s: list[float]) -> dict[str, float]:
    return {
        "median_ms": round(1e3 * statistics.median(times_s), 2),
        "min_ms": round(1e3 * min(times_s), 2),
        "max_ms": round(1e3 * max(times_s), 2),
        "runs": len(times_s),
    }


def measure(sequences: Sequences, budget: int | None, cpp_runs: int, twin_runs: int) -> dict[str, object]:
    """`cpp_runs` of C++ before each run of the twin."""
    times_s: dict[str, list[float]] = {"cpp": [], "python": []}
    plans = plan_trees(sequences, token_budget=budget)  # warm: pages, caches
    for _ in range(twin_runs):
        for _ in range(cpp_runs):
            times_s["cpp"].append(timed(lambda: plan_trees(sequences, token_budget=budget))[0])
        times_s["python"].append(timed(lambda: plan_trees(sequences, token_budget=budget, impl="python"))[0])
    positions = sum(len(plan.token_S) for plan in plans)
    unshared_tokens = sum(plan.unshared_tokens for plan in plans)
    assert positions < unshared_tokens, "nothing is shared: not the case to measure"
    return {
        "token_budget": budget,
        "plans": len(plans),
        "positions": positions,
        "unshared_tokens": unshared_tokens,
        "edges": sum(len(plan.source_T) for plan in plans),
        "cpp": summary(times_s["cpp"]),
        "python": summary(times_s["python"]),
        "twin_over_cpp": round(statistics.median(times_s["python"]) / statistics.median(times_s["cpp"]), 1),
    }


def test_prefix_tree_planning(benchmark_mode: bool, record: Callable[[str, dict], None]) -> None:
    shape = FULL if benchmark_mode else SMALL
    budgets = (None, 65_536, 8192) if benchmark_mode else (None, 256)
    runs = (7, 3) if benchmark_mode else (2, 1)
    sequences = make_sequences(shape)
    results = [measure(sequences, budget, *runs) for budget in budgets]
    record("prefix_tree", {"shape": asdict(shape), "tokens": len(sequences.ids_N), "budgets": results})
