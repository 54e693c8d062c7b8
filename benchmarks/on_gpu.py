"""One run on a GPU machine, in under nine minutes: build, check, measure in the order of worth.

    python benchmarks/on_gpu.py [--out DIR] [--wheels DIR] [--commit HASH] [--seconds 525] [--parts check ...]
                                [--limits check=150 ...]

Torch, triton, transformers, pytest and hypothesis are enough there. Packages that the machine lacks travel
as wheels (`gpu_wheels.txt` names them and how they are fetched) and are installed into a folder of the run's
own; a peer that is missing is left out by name. With pytest-xdist the checks, most of them compilation, run
in several processes, those that watch the GPU's memory by themselves.

Each part has a time limit and a process group of its own, which is killed with all that it started when the
part ends or overruns. One that fails or is cut off does not keep the next from running; one for which too
little time is left is skipped. After each part DIR holds `summary.json` and `results.tgz` (logs and records):
whatever ends the run loses one part at most. Exits 1 if a check did not pass.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PYTHON = sys.executable
TAIL = 12
"""Lines shown of the log of a part that failed."""
LEAST_S = 15.0
"""A part is not begun with less time than this left."""


@dataclass(frozen=True)
class Part:
    limit_s: int
    command: list[str]
    """`{out}` is the folder of logs and records; `{soft}`, two thirds of the limit, is when the part itself
    begins nothing more."""


PROCESSES = 14
"""Most of a check's time is the compiler's, on the CPU."""
KERNELS = (
    "kernels/test_linear_gpu",
    "kernels/test_rows_gpu",
    "kernels/test_padded_gpu",
    "kernels/test_tree_attention_gpu",
    "kernels/test_tree_attention",
    "model/test_liger_ops_gpu",
)
WHOLE = (
    "learner/test_learner_gpu", "rollout/test_rollout_gpu", "train/test_resume_gpu", "test_memory_gpu",
    "optim/test_optim_gpu",
)  # fmt: skip


def _check(*names: str, processes: int = 1) -> list[str]:
    """GPU tests of these files alone: to collect all tests takes packages that a GPU machine may lack."""
    files = [f"tests/{name}.py" for name in names]
    together = processes > 1 and importlib.util.find_spec("xdist") is not None
    many = ["-n", str(processes)] if together else []
    return [PYTHON, "-m", "pytest", "-q", "-m", "gpu", *files, "--continue-on-collection-errors", *many]


def _benchmark(*names: str, which: str = "") -> list[str]:
    """`which`: an expression of test names."""
    files = [f"benchmarks/{name}.py" for name in names]
    chosen = ["-k", which] if which else []
    return [PYTHON, "-m", "pytest", "-q", *files, "--benchmark", "--seconds", "{soft}", *chosen]


BUILD = f"'{PYTHON}' setup.py build_ext --inplace"
LEARN = (
    f"'{PYTHON}' -m g2rpo_fast.cli train --run.dir {{out}}/../learn "
    "&& cp {{out}}/../learn/metrics.jsonl {{out}}/learn_metrics.jsonl"
)
"""The main job, as it is, on the GPU."""
PARTS: dict[str, Part] = {
    "build": Part(45, ["sh", "-c", f"{BUILD} && cd kernels && {BUILD}"]),
    "check": Part(110, _check(*KERNELS, *WHOLE, processes=PROCESSES)),
    "linear_loss": Part(35, _benchmark("bench_linear_loss", which="not peers")),
    "step": Part(110, _benchmark("bench_gpu_step", which="test_step and not other_ways")),
    "attention": Part(70, _benchmark("bench_attention", which="not flex")),
    "policy_loss": Part(30, _benchmark("bench_policy_loss")),
    "sync": Part(60, [PYTHON, "benchmarks/sync_on_gpu.py"]),
    "check_sync": Part(40, _check("rollout/test_ipc_arena_gpu")),
    "linear_peers": Part(110, _benchmark("bench_linear_loss", which="peers")),
    "learn": Part(110, ["sh", "-c", LEARN]),
    "other_ways": Part(90, _benchmark("bench_gpu_step", which="other_ways or rollout")),
    "flex": Part(70, _benchmark("bench_attention", "bench_tile_lists", which="flex or lists")),
    "tune": Part(60, [PYTHON, "benchmarks/tune.py", "--out", "{out}/tuning.json", "--seconds", "{soft}"]),
}
"""In the order of worth, with limits after what they took on an H100 and an H200. Those of a first run add up
to `--seconds`; a machine that is there for longer takes others: `--parts check_sync linear_peers learn`."""
FIRST_RUN = ("build", "check", "linear_loss", "step", "attention", "policy_loss", "sync")


@dataclass(frozen=True)
class Outcome:
    ended: str
    seconds: float = 0.0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "gpu_results")))
    parser.add_argument("--wheels", type=Path, default=ROOT / ".gpu_wheels", help="packages to install first")
    parser.add_argument("--commit", help="what the records name where the tree came without its history")
    parser.add_argument("--seconds", type=float, default=525.0)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--limits", nargs="+", type=_limit, default=[], help="seconds of parts, as check=150")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("on_gpu.py: wanted a CUDA device, got none")
    if given.commit:
        os.environ["BENCHMARK_COMMIT"] = given.commit
    work = Path(tempfile.mkdtemp(prefix="on_gpu_"))
    began = time.monotonic()
    install(given.wheels, work)
    seconds = given.seconds - (time.monotonic() - began)
    limits = dict(given.limits)
    parts = {n: replace(PARTS[n], limit_s=limits.get(n, PARTS[n].limit_s)) for n in given.parts}
    return run_parts(parts, work, given.out, seconds)


def _limit(text: str) -> tuple[str, int]:
    name, _, seconds = text.partition("=")
    if name not in PARTS or not seconds.isdigit():
        raise argparse.ArgumentTypeError(f"wanted PART=SECONDS, got {text!r}")
    return name, int(seconds)


def install(wheels: Path, work: Path) -> None:
    """Puts the wheels of a folder on the path of every part; nothing of the machine's own is replaced."""
    found = sorted(str(wheel) for wheel in wheels.glob("*.whl"))
    if not found:
        return print(f"no wheels in {wheels}: what needs them is left out")
    site = work / "site"
    pip = [
        PYTHON,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-index",
        "--no-deps",
        "--no-compile",
        "--target",
        str(site),
    ]
    subprocess.run([*pip, *found], check=True)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    return print(f"installed {len(found)} wheels")


def run_parts(parts: dict[str, Part], work: Path, out: Path, seconds: float) -> int:
    """Runs the parts in order until the time is over; 1 if there was a check that did not pass."""
    logs = work / "results"
    logs.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    since, end = time.time(), time.monotonic() + seconds
    outcomes: dict[str, Outcome] = {}
    for name, part in parts.items():
        left_s = end - time.monotonic()
        skipped = Outcome("skipped: no time left")
        limit_s = min(part.limit_s, left_s)
        outcomes[name] = run_part(name, part, limit_s, logs) if left_s >= LEAST_S else skipped
        print(f"{name:12} {outcomes[name].ended} ({outcomes[name].seconds:.0f} s)", flush=True)
        if outcomes[name].ended != "ok" and (log := logs / f"{name}.log").exists():
            print("\n".join(f"    {line[:300]}" for line in log.read_text().splitlines()[-TAIL:]), flush=True)
        keep(outcomes, logs, out, since)
    return int(any(name.startswith("check") and outcomes[name].ended != "ok" for name in outcomes))


def run_part(name: str, part: Part, limit_s: float, logs: Path) -> Outcome:
    """Runs one part with its log in `logs`; says how it ended. Nothing that it started lives on."""
    words = [word.format(out=logs.resolve(), soft=int(limit_s * 2 / 3)) for word in part.command]
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    environment = {"OMP_NUM_THREADS": "2"} | os.environ | {"PYTHONPATH": path}
    start = time.monotonic()
    with (logs / f"{name}.log").open("w") as log:
        process = subprocess.Popen(
            words, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            status = process.wait(limit_s)
            ended = "ok" if status == 0 else f"failed with status {status}"
        except subprocess.TimeoutExpired:
            ended = f"cut off after {limit_s:.0f} s"
        finally:
            _end_group(process)
    return Outcome(ended, time.monotonic() - start)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Kills a part and whatever of its children is left."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        process.wait()


def keep(outcomes: dict[str, Outcome], logs: Path, out: Path, since: float) -> None:
    """What there is so far: how parts ended and the records made `since`, as a summary and in one archive."""
    files = [file for file in sorted(RESULTS.glob("*_cuda*.json")) if file.stat().st_mtime >= since]
    summary = {
        "parts": {name: asdict(outcome) for name, outcome in outcomes.items()},
        "records": [json.loads(file.read_text()) for file in files],
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=1))
    for file in files:
        shutil.copy(file, logs / file.name)
    with tarfile.open(out / "results.tgz", "w:gz") as archive:
        archive.add(logs, arcname="results")
        archive.add(out / "summary.json", arcname="results/summary.json")


if __name__ == "__main__":
    sys.exit(main())
