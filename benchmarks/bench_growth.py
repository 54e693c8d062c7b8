"""How the cost of an update grows: with prompt length, prompts, group size and completion length.

One record for each quantity, the others held. An update is forward, backward and optimiser on given rollouts,
on a CPU, one thread, a 0.4M-parameter Qwen3: our prefix tree against rows padded with repeated prompts.
`g2rpo-fast bench --plots DIR` draws the records: cost against each quantity and against S (stream positions),
and the speed-up against the token ratio (tokens without sharing over S). The last sweep is where little is
shared.
"""

from __future__ import annotations

import pytest

import sides
from g2rpo_fast.tree import plan_trees
from provenance import Record

SWEEPS: dict[str, tuple[str, list[dict[str, int]]]] = {
    "prompt_tokens": ("prompt", [{"prompt": n} for n in (16, 64, 256, 1024)]),
    "group": ("group", [{"prompt": 256, "group": n} for n in (2, 4, 8, 32)]),
    "prompts": ("prompts", [{"prompt": 256, "prompts": n} for n in (1, 2, 8)]),
    "completion_tokens": (
        "completion",
        [{"prompt": 64, "group": 8, "completion": n} for n in (32, 128, 512)],
    ),
}
"""name: (what is varied, points); unnamed values are those of `sides.Update`."""
SMOKE = {"prompts": 1, "group": 2, "completion": 4}


@pytest.mark.parametrize("sweep", SWEEPS)
def test_update_cost(benchmark_mode: bool, record: Record, sweep: str) -> None:
    """Medians of interleaved processes; memory is each side's peak above its start."""
    varied, points = SWEEPS[sweep]
    if not benchmark_mode:
        points = [{"prompt": 8} | SMOKE | {varied: value} for value in (2, 8)]
        cases = [counts(point) for point in points]
        cases[-1] |= measured(points[-1], steps=1, rounds=1) if sweep == "group" else {}
    else:
        cases = [counts(point) | measured(point, steps=3, rounds=2) for point in points]
    assert all(case["token_ratio"] > 1 for case in cases)
    record(f"growth_{sweep}_cpu", {"varied": varied, "cases": cases})


def counts(point: dict[str, int]) -> dict[str, float]:
    """The point's shape, its stream positions S and its token ratio."""
    update = sides.Update(**point)
    plans = plan_trees(update.sequences())
    positions = sum(len(plan.token_S) for plan in plans)
    shape = {name: getattr(update, name) for name in ("prompt", "prompts", "group", "completion")}
    unshared = sum(plan.unshared_tokens for plan in plans)
    return {**shape, "positions": positions, "token_ratio": unshared / positions}


def measured(point: dict[str, int], steps: int, rounds: int) -> dict[str, object]:
    return sides.compare("tree_update", "padded_update", {"steps": steps, **point}, rounds)
