"""One run on a GPU machine, in under nine minutes: build, check, tune, time.

    python benchmarks/on_gpu.py [--out DIR]

Needs torch, triton and transformers; builds the extension where pybind11 is installed. Each part has a time
limit and a log in DIR; one that fails or is cut off does not keep the next from running. Ends with a summary,
and exits 1 if the checks did not pass.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
PYTHON = sys.executable
PARTS: list[tuple[str, int, list[str]]] = [
    ("build", 60, [PYTHON, "setup.py", "build_ext", "--inplace"]),
    ("check", 150, [PYTHON, "-m", "pytest", "-q", "-m", "gpu", "tests"]),
    ("attention", 80, [PYTHON, "-m", "pytest", "-q", "benchmarks/bench_attention.py", "--benchmark"]),
    ("policy_loss", 60, [PYTHON, "-m", "pytest", "-q", "benchmarks/bench_policy_loss.py", "--benchmark"]),
    ("linear_loss", 90, [PYTHON, "-m", "pytest", "-q", "benchmarks/bench_linear_loss.py", "--benchmark"]),
    ("tune", 90, [PYTHON, "benchmarks/tune.py", "--out", "{out}/tuning.json"]),
]
"""(name, seconds at most, command): 530 s in all."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "gpu_results")))
    out: Path = parser.parse_args().out
    if not torch.cuda.is_available():
        raise SystemExit("on_gpu.py: wanted a CUDA device, got none")
    out.mkdir(parents=True, exist_ok=True)
    outcomes = {name: run_part(name, limit, command, out) for name, limit, command in PARTS}
    for file in (ROOT / "benchmarks" / "results").glob("*_cuda*.json"):
        shutil.copy(file, out / file.name)
    print("\n".join(f"{name:12} {outcome}" for name, outcome in outcomes.items()))
    return int(not outcomes["check"].startswith("ok"))


def run_part(name: str, limit_s: int, command: list[str], out: Path) -> str:
    """Runs one part with its log in `out`; says how it ended."""
    words = [word.format(out=out.resolve()) for word in command]
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    start = time.perf_counter()
    with (out / f"{name}.log").open("w") as log:
        try:
            done = subprocess.run(
                words, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, timeout=limit_s,
                env=os.environ | {"PYTHONPATH": path},
            )  # fmt: skip
            ended = "ok" if done.returncode == 0 else f"failed with status {done.returncode}"
        except subprocess.TimeoutExpired:
            ended = f"cut off after {limit_s} s"
    return f"{ended} ({time.perf_counter() - start:.0f} s)"


if __name__ == "__main__":
    sys.exit(main())
