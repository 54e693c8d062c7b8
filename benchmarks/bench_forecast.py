"""`g2rpo-fast plan` beside the run that it speaks of: memory and time, of the embedded task and a real model.

Both in processes of their own, the plan first. A run's step is compared by its phases; its update by what the
plan says of groups with a signal: rewards differ in each row here, so every group has one.

SmolLM2-135M-Instruct, or another model, is read from the directory that the environment variable
G2RPO_BENCH_MODEL names; without it that case is skipped.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

MIB = 1 << 20
EMBEDDED = ["--run.steps", "8", "--run.threads", "1", "--reward.functions", "sides:noise_reward"]
SMOKE = [
    "--run.steps", "1", "--run.threads", "1", "--run.prompts-per-step", "2",
    "--embedded.warm-start-steps", "2",
    "--embedded.train-rows", "32", "--embedded.eval-rows", "8", "--reward.functions", "sides:noise_reward",
]  # fmt: skip
REAL = [
    "--data.prompt-column", "question", "--data.template", "Question: {prompt}\nAnswer:", "--run.steps", "2",
    "--run.prompts-per-step", "4", "--run.threads", "1", "--rollout.group-size", "8",
    "--rollout.max-tokens", "128", "--evaluate.every", "2", "--guidance.no-enabled", "--samples.every", "0",
    "--reward.functions", "sides:noise_reward",
]  # fmt: skip
MEASURED = """
import json, resource, subprocess, sys
done = subprocess.run(sys.argv[1:], capture_output=True, text=True)
print(json.dumps({"status": done.returncode, "out": done.stdout, "err": done.stderr,
                  "peak_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024}))
"""


def test_embedded(benchmark_mode: bool, record: Callable[[str, dict], None]) -> None:
    words = EMBEDDED if benchmark_mode else SMOKE
    figures = compared(words, [] if benchmark_mode else ["--seconds", "0.5"])
    assert figures["memory_ratio"] > 0
    record("forecast_embedded_cpu", figures)


def test_real_model(benchmark_mode: bool, record: Callable[[str, dict], None], tmp_path: Path) -> None:
    record("forecast_real_model_cpu", compared(real_run(benchmark_mode, tmp_path), []))


def real_run(benchmark_mode: bool, directory: Path) -> list[str]:
    """Options of a run of the real model on sums that are written to a directory; skips without a model."""
    model = os.environ.get("G2RPO_BENCH_MODEL")
    if not model or not benchmark_mode:
        pytest.skip("wanted --benchmark and a model's directory in G2RPO_BENCH_MODEL")
    rng, files = random.Random(0), []
    for name, rows in (("train", 64), ("held_out", 8)):
        files.append(directory / f"{name}.jsonl")
        files[-1].write_text("".join(json.dumps(sum_of(rng)) + "\n" for _ in range(rows)))
    return ["--model.path", model, "--data.path", str(files[0]), "--data.eval-path", str(files[1]), *REAL]


def sum_of(rng: random.Random) -> dict[str, str]:
    numbers = [rng.randrange(10, 100) for _ in range(rng.randrange(3, 12))]
    return {"question": f"What is {' + '.join(map(str, numbers))}?", "answer": str(sum(numbers))}


def compared(words: Sequence[str], options: Sequence[str]) -> dict[str, Any]:
    """Plan / run."""
    planned = json.loads(called(["plan", "--json", *options, *words])["out"])
    directory = Path(tempfile.mkdtemp()) / "run"
    run = called(["train", *words, "--run.dir", str(directory)])
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    _, *steps = [json.loads(line) for line in lines]
    peak_mib = planned["memory"]["peak"] / MIB
    phases = {
        name: {
            "plan_s": planned["time"][f"{plan}_s"],
            "run_s": statistics.mean(step[f"time/{name}_s"] for step in steps),
        }
        for name, plan in (("rollout", "rollout"), ("update", "update"))
    }
    step = {side: sum(phase[side] for phase in phases.values()) for side in ("plan_s", "run_s")}
    return {
        "words": list(words)[-len(REAL) :],
        "plan_peak_mib": peak_mib,
        "run_peak_mib": run["peak_mib"],
        "memory_ratio": peak_mib / run["peak_mib"],
        "memory": {name: value / MIB for name, value in planned["memory"].items()},
        "phases": phases,
        "step_ratio": step["plan_s"] / step["run_s"],
        "plan_response_tokens": planned["work"]["response_tokens"],
        "run_response_tokens": statistics.mean(
            s["rollout/sampled_tokens"] / s["rollout/rows"] for s in steps
        ),
        "load_average": os.getloadavg()[0],
    }


def called(words: Sequence[str]) -> dict[str, Any]:
    """What `g2rpo-fast` printed, and its peak memory."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", MEASURED, sys.executable, "-m", "g2rpo_fast.cli", *words]
    done = json.loads(
        subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    )
    assert done["status"] in (0, 3), done["err"]
    return done
