"""Named shared memory of an engine's processes, which outlives those that were killed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

SHARED = Path("/dev/shm")
PROCESSES = Path("/proc")


def mapped_files(group: int) -> set[Path]:
    """What the living processes of a process group have mapped of the shared memory that has a name."""
    found: set[Path] = set()
    for process in _members(group):
        with suppress(OSError):  # it ended meanwhile
            lines = (process / "maps").read_text().splitlines()
            names = [line.partition(f"{SHARED}/")[2] for line in lines if not line.endswith("(deleted)")]
            found |= {SHARED / name for name in names if name}
    return found


def _members(group: int) -> Iterator[Path]:
    for process in PROCESSES.glob("[0-9]*"):
        with suppress(OSError):
            after_name = (process / "stat").read_text().rpartition(")")[2].split()
            if int(after_name[2]) == group:  # state, parent, group
                yield process
