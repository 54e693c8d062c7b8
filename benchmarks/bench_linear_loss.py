"""From hidden states and LM head to a clipped loss and both gradients: against eager, compiled and peers.

The floor is three matrix products; `matmul_percent` is the share of the device's measured ceiling that a step
reaches when it is counted as three products. On a CPU sides run in turn in processes of their own, and the
times compared are CPU times of one thread, which other work on the machine disturbs least.

On a CPU eager, too, spends most of a step in these products, near the ceiling: 0.6 of its time at D = 256 and
V = 151,936, 0.75 at D = 512. Ours adds a few percent to them, so their share bounds the gain, and it shrinks
as D grows; except for rows without a gradient, which cost ours one product of the three.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import pytest
import torch

from linear_peers import LOSSES
from linear_problem import make_problem
from linear_sides import SAME_LOSS, SIDES, Figures, in_own_process, step_of
from peers import unasked, usable
from provenance import Record
from timing import Deadline, ceilings, interleaved, peak_mib, spread_ms


@dataclass(frozen=True)
class Shape:
    rows: int
    width: int
    vocabulary: int
    silent_percent: int = 0
    """Of the sequences, without an advantage."""

    def __str__(self) -> str:
        silent = f"_silent{self.silent_percent}" if self.silent_percent else ""
        return f"n{self.rows}_d{self.width}_v{self.vocabulary}{silent}"


@dataclass(frozen=True)
class Effort:
    """Processes of each side, and steps timed in each; whether peers are asked as well."""

    rounds: int = 2
    steps: int = 1
    peers: bool = False


ON_GPU = torch.cuda.is_available()
CPU_CASES = {
    Shape(512, 256, 151_936): Effort(peers=True),
    Shape(2048, 128, 151_936): Effort(rounds=3),
    Shape(2048, 256, 151_936): Effort(),
    Shape(2048, 512, 151_936): Effort(),
    Shape(2048, 512, 151_936, silent_percent=50): Effort(),
    Shape(11_008, 128, 40): Effort(steps=20),
}
"""Half of the sequences silent is usual in GRPO: groups whose rewards are all equal teach nothing. The last
is the embedded task's size."""
GPU_CASES = [
    (Shape(16_384, width, 151_936), Effort(steps=3 if peers else 5, peers=peers))
    for peers in (False, True)
    for width in (2048, 4096)
]
"""Peers may take all the time there is, so ours is on record before: the record with peers replaces it."""
CASES = GPU_CASES if ON_GPU else list(CPU_CASES.items())
NAMES = [f"{shape}{'_and_peers' if ON_GPU and effort.peers else ''}" for shape, effort in CASES]
SMALL = Shape(64, 8, 104)
LOSS_TOLERANCE = 2e-2 if ON_GPU else 1e-3
"""Relative; a twentieth of it absolute, because the loss, a mean of terms of about 1, may be near 0."""


@pytest.mark.parametrize(("shape", "effort"), CASES, ids=NAMES)
def test_linear_policy_loss(
    benchmark_mode: bool, deadline: Deadline, record: Record, shape: Shape, effort: Effort
) -> None:
    """One step (loss, d hidden, d head); peak memory of a step beside the inputs."""
    size = shape if benchmark_mode else SMALL
    if not benchmark_mode:
        effort = Effort(rounds=1, peers=(shape, effort) == next(case for case in CASES if case[1].peers))
    measured = in_processes if benchmark_mode and not ON_GPU else in_this_process
    results, skipped = measured(size, effort, deadline)
    skipped |= leave_out_wrong(results)
    device, dtype = ("cuda", torch.bfloat16) if ON_GPU else ("cpu", torch.float32)
    ceiling = ceilings(device, dtype, small=not benchmark_mode)
    figures = {
        **asdict(size),
        "dtype": str(dtype).removeprefix("torch."),
        "ceilings": ceiling,
        "sides": rows_of(results, size, ceiling["matmul_tflops"]),
        "skipped": skipped,
    }
    record(f"linear_policy_loss_{device}_{size}", figures)


def leave_out_wrong(results: dict[str, Figures]) -> dict[str, str]:
    """Takes peers that compute another loss than eager out of `results`; says which. Ours must be right."""
    wanted = results["eager"]["loss"]
    assert wanted != 0
    right = pytest.approx(wanted, rel=LOSS_TOLERANCE, abs=LOSS_TOLERANCE / 20)
    assert results["ours"]["loss"] == right
    found = {side: results[side]["loss"] for side in LOSSES if side in SAME_LOSS and side in results}
    wrong = {side: loss for side, loss in found.items() if loss != right}
    for side in wrong:
        del results[side]
    return {side: f"wanted a loss of {wanted:.6g}, got {loss:.6g}" for side, loss in wrong.items()}


def rows_of(results: dict[str, Figures], shape: Shape, matmul_tflops: float) -> list[Figures]:
    """A row of figures for each side; ratios are to ours."""
    ours, operations = results["ours"], 6e-12 * shape.rows * shape.width * shape.vocabulary
    best = statistics.median(ours["seconds"])
    return [
        {
            "side": side,
            **spread_ms(result["seconds"]),
            "time_ratio": statistics.median(result["seconds"]) / best,
            "matmul_percent": 100 * operations / statistics.median(result["seconds"]) / matmul_tflops,
            "peak_mib": result["peak_mib"],
            "memory_ratio": result["peak_mib"] / max(ours["peak_mib"], 1.0),
        }
        for side, result in results.items()
    ]


def in_processes(
    shape: Shape, effort: Effort, deadline: Deadline
) -> tuple[dict[str, Figures], dict[str, str]]:
    """On a CPU: each side in processes of its own, in turn."""
    results: dict[str, Figures] = {}
    skipped: dict[str, str] = {}
    whys = {name: unasked(peer, deadline) for name, peer in LOSSES.items()} if effort.peers else {}
    skipped |= {name: why for name, why in whys.items() if why is not None}
    for _ in range(effort.rounds):
        for side in [side for side in (*SIDES, *whys) if side not in skipped]:
            try:
                found = in_own_process(side, {**asdict(shape), "steps": effort.steps})
            except RuntimeError as error:
                if side in SIDES:
                    raise
                skipped[side] = str(error)[-200:]
                continue
            result = results.setdefault(side, {"seconds": [], "peak_mib": 0.0, "loss": found["loss"]})
            result["seconds"] += found["cpu_seconds"]
            result["peak_mib"] = max(result["peak_mib"], found["peak_mib"])
    return results, skipped


def in_this_process(
    shape: Shape, effort: Effort, deadline: Deadline
) -> tuple[dict[str, Figures], dict[str, str]]:
    """On CUDA, and small: all sides on the same inputs, in turn."""
    problem = make_problem(**asdict(shape), device="cuda" if ON_GPU else "cpu")
    steps: dict[str, Callable[[], Any]] = {s: step_of(make(), problem) for s, make in SIDES.items()}
    skipped: dict[str, str] = {}
    if effort.peers:
        peers = {
            name: replace(peer, make=lambda make=peer.make: step_of(make(), problem))
            for name, peer in LOSSES.items()
        }
        found, skipped = usable(peers, deadline)
        steps |= found
    losses = {side: float(step()) for side, step in steps.items()}
    seconds = interleaved(steps, effort.steps)
    results = {
        side: {"seconds": seconds[side], "peak_mib": peak_mib(step), "loss": losses[side]}
        for side, step in steps.items()
    }
    return results, skipped
