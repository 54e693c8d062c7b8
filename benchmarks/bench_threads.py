"""A whole step with one thread and with two, on a CPU: processes of each in turn, seconds of the wall clock.

On an idle machine two should take little more than half the time. Where another program keeps a core busy two
threads wait for each other; `run.threads = 0`, the default, then takes one, by the system's load.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from typing import Any

import pytest

import sides
from g2rpo_fast.cpu import free_threads
from provenance import Record

CASES: dict[str, dict[str, Any]] = {
    "tiny, prompts of 64": {"prompt": 64},
    "tiny, prompts of 1,024": {"prompt": 1024},
    "shape of SmolLM2-135M, 3 layers": {"prompt": 64, "wider": {"layers": 3, "vocabulary": 8192}},
}
SMALL = {"prompt": 4, "wider": {"layers": 1, "vocabulary": 64}}
LOADED_S = 150
"""Until the system's load of one minute shows a busy core."""


@pytest.mark.parametrize("name", CASES)
def test_two_threads_against_one(benchmark_mode: bool, record: Record, name: str) -> None:
    case, steps, rounds = (CASES[name], 3, 3) if benchmark_mode else (SMALL, 1, 1)
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(rounds):
        for threads, found in seconds.items():
            found += sides.run("ours_step", {**case, "steps": steps, "threads": threads})["seconds"]
    medians = {threads: statistics.median(found) for threads, found in seconds.items()}
    file = "threads_" + "".join(c if c.isalnum() else "_" for c in name.lower()) + "_cpu"
    record(
        file,
        {
            "case": name,
            **case,
            "seconds": {str(threads): found for threads, found in seconds.items()},
            "median_s": {str(threads): median for threads, median in medians.items()},
            "speed_up": medians[1] / medians[2],
        },
    )
    assert all(found > 0 for found in medians.values())


def test_threads_taken_beside_a_busy_core(benchmark_mode: bool, record: Record) -> None:
    """How many a run would take by itself, before and after another program kept a core busy."""
    before = free_threads()
    busy = multiprocessing.Process(target=_spin, daemon=True)
    busy.start()
    time.sleep(LOADED_S if benchmark_mode else 0.1)
    after = free_threads()
    busy.kill()
    busy.join()
    record("threads_beside_a_busy_core_cpu", {"idle": before, "beside_a_busy_core": after})
    assert 1 <= after <= before or not benchmark_mode


def _spin() -> None:
    while True:
        pass
