"""What this machine has for a run."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from g2rpo_fast.forecast.memory import this_process


def memory_bytes(device: torch.device) -> int:
    """That a run on the device may have in all, what this process has of it included; 0 = not known.

    On a CPU: what the system calls available, and a control group's limit where that is less.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    lines = _text("/proc/meminfo").splitlines()
    kib = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    if not kib:
        return 0
    free = kib[0] * 1024
    limit, used = _text("/sys/fs/cgroup/memory.max"), _text("/sys/fs/cgroup/memory.current")
    if limit.strip().isdigit() and used.strip().isdigit():
        free = min(free, int(limit) - int(used))
    return max(free, 0) + this_process().in_use


def disk_bytes(directory: Path) -> int:
    """Free where the directory is, or would be made."""
    there = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
