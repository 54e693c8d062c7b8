"""One run on a GPU machine, in under nine minutes: build, check, time, tune.

    python benchmarks/on_gpu.py [--out DIR] [--seconds 525] [--parts build check ...]

Needs torch, triton, transformers, pydantic and plotext, pytest and hypothesis; builds the extension where
pybind11 is installed. Nearly all of the kernels' checks is compilation: with pytest-xdist they run in several
processes, those that watch the GPU's memory by themselves. Each part has a time limit and a log in DIR; one
that fails or is cut off does not keep the next from running, and one for which too little time is left is
skipped. Benchmark records and `summary.json` are in DIR after each part, so that whatever ends the run loses
one part at most. Exits 1 if the checks did not pass.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PYTHON = sys.executable
LEAST_S = 15.0
"""A part is not begun with less time than this left."""


@dataclass(frozen=True)
class Part:
    limit_s: int
    command: list[str]
    """`{out}` is DIR; `{soft}`, two thirds of the limit, is when the part itself begins nothing more."""


PROCESSES = 8


def _check(*names: str, processes: int = 1) -> list[str]:
    """GPU tests of these files alone: to collect all tests takes packages that a GPU machine may lack."""
    files = [f"tests/test_{name}.py" for name in names]
    together = processes > 1 and importlib.util.find_spec("xdist") is not None
    many = ["-n", str(processes)] if together else []
    return [PYTHON, "-m", "pytest", "-q", "-m", "gpu", *files, "--continue-on-collection-errors", *many]


def _benchmark(*names: str) -> list[str]:
    files = [f"benchmarks/{name}.py" for name in names]
    return [PYTHON, "-m", "pytest", "-q", *files, "--benchmark", "--seconds", "{soft}"]


PARTS: dict[str, Part] = {
    "build": Part(50, [PYTHON, "setup.py", "build_ext", "--inplace"]),
    "check": Part(
        100,
        _check(
            "linear_gpu",
            "rows_gpu",
            "tree_attention_gpu",
            "tree_attention",
            "liger_ops_gpu",
            processes=PROCESSES,
        ),
    ),
    "check_sync": Part(40, _check("ipc_arena_gpu")),
    "sync": Part(35, [PYTHON, "benchmarks/sync_on_gpu.py"]),
    "linear_loss": Part(120, _benchmark("bench_linear_loss")),
    "policy_loss": Part(50, _benchmark("bench_policy_loss")),
    "attention": Part(90, _benchmark("bench_tile_lists", "bench_attention")),
    "tune": Part(50, [PYTHON, "benchmarks/tune.py", "--out", "{out}/tuning.json", "--seconds", "{soft}"]),
}
"""535 s in all."""


@dataclass(frozen=True)
class Outcome:
    ended: str
    seconds: float = 0.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "gpu_results")))
    parser.add_argument("--seconds", type=float, default=525.0)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    given = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("on_gpu.py: wanted a CUDA device, got none")
    return run_parts({name: PARTS[name] for name in given.parts}, given.out, given.seconds)


def run_parts(parts: dict[str, Part], out: Path, seconds: float) -> int:
    """Runs the parts in order until the time is over; 1 if there was a check that did not pass."""
    out.mkdir(parents=True, exist_ok=True)
    since, end = time.time(), time.monotonic() + seconds
    outcomes: dict[str, Outcome] = {}
    for name, part in parts.items():
        left_s = end - time.monotonic()
        skipped = Outcome("skipped: no time left")
        limit_s = min(part.limit_s, left_s)
        outcomes[name] = run_part(name, part, limit_s, out) if left_s >= LEAST_S else skipped
        print(f"{name:12} {outcomes[name].ended} ({outcomes[name].seconds:.0f} s)", flush=True)
        keep(outcomes, out, since)
    return int(any(name.startswith("check") and outcomes[name].ended != "ok" for name in outcomes))


def run_part(name: str, part: Part, limit_s: float, out: Path) -> Outcome:
    """Runs one part with its log in `out`; says how it ended."""
    words = [word.format(out=out.resolve(), soft=int(limit_s * 2 / 3)) for word in part.command]
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    start = time.monotonic()
    with (out / f"{name}.log").open("w") as log:
        try:
            done = subprocess.run(
                words, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, timeout=limit_s,
                env={"OMP_NUM_THREADS": "2"} | os.environ | {"PYTHONPATH": path},
            )  # fmt: skip
            ended = "ok" if done.returncode == 0 else f"failed with status {done.returncode}"
        except subprocess.TimeoutExpired:
            ended = f"cut off after {limit_s:.0f} s"
    return Outcome(ended, time.monotonic() - start)


def keep(outcomes: dict[str, Outcome], out: Path, since: float) -> None:
    """What there is so far: how parts ended, and the records made `since`, together and one by one."""
    files = [file for file in sorted(RESULTS.glob("*_cuda*.json")) if file.stat().st_mtime >= since]
    summary = {
        "parts": {name: asdict(outcome) for name, outcome in outcomes.items()},
        "records": [json.loads(file.read_text()) for file in files],
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=1))
    for file in files:
        shutil.copy(file, out / file.name)


if __name__ == "__main__":
    sys.exit(main())
