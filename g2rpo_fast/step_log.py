"""Files of JSON lines that a run adds to: records of each step, every step's once, however often the run was
killed and continued.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from g2rpo_fast.files import write_text, writing


class StepLog:
    """Append-only JSON lines, each with its step. A resumed run first drops those past its checkpoint."""

    def __init__(self, path: Path, *, last_step: int) -> None:
        """Args: last_step: records of later steps are dropped (they will be made again)."""
        self._path = path
        kept = [line for line in complete_lines(path) if json.loads(line)["step"] <= last_step]
        write_text(path, "".join(kept))
        self._file = path.open("ab", buffering=0)

    def write(self, step: int, *records: Mapping[str, Any]) -> None:
        """The whole records, or WriteError and nothing of them. A number that is not finite becomes null."""
        data = "".join(_line(step, record) for record in records).encode()
        size = os.fstat(self._file.fileno()).st_size
        with writing(self._path):
            try:
                while data:
                    data = data[self._file.write(data) :]
            except OSError:
                os.ftruncate(self._file.fileno(), size)
                raise

    def close(self) -> None:
        self._file.close()


def _line(step: int, record: Mapping[str, Any]) -> str:
    clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
    return json.dumps({"step": step, **clean}) + "\n"


def complete_lines(path: Path) -> list[str]:
    """Those that end: a process that writes, or was killed, may leave half of one. [] = no file."""
    if not path.exists():
        return []
    lines = path.read_bytes().decode(errors="replace").splitlines(keepends=True)
    return [line for line in lines if line.endswith("\n")]


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file, [] where there is none.

    Raises:
        ValueError: a line that is no record; names file and line.
    """
    for number, line in enumerate(complete_lines(path), start=1):
        try:
            record = json.loads(line)
            record["step"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}:{number}: wanted a JSON object with a step, got {line.strip()[:60]!r}"
            ) from error
        yield record
