"""What a checkpoint's files must be: size and CRC-32 of each, so that a damaged one is noticed by name."""

from __future__ import annotations

import json
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path

NAME = "manifest.json"
_CHUNK = 1 << 24


def write_manifest(directory: Path, *, without: Collection[str] = ()) -> None:
    """Lists the files that are there, read back from disk, but for those that will go."""
    listed = {
        str(file.relative_to(directory)): {"bytes": file.stat().st_size, "crc32": _crc32(file)}
        for file in _files(directory)
        if file.name not in without
    }
    (directory / NAME).write_text(json.dumps(listed, indent=1))


def damage_of(directory: Path) -> str | None:
    """The first file that is not as it was written, and how; None = all are.

    A directory without a manifest was written by a version that had none, and is taken as it is.
    """
    manifest = directory / NAME
    if not manifest.exists():
        return None
    try:
        listed = json.loads(manifest.read_bytes())
        for name, wanted in listed.items():
            problem = _problem(directory / name, wanted["bytes"], wanted["crc32"])
            if problem:
                return f"{name} {problem}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{NAME} cannot be read"
    except OSError as error:
        return f"{error.filename} cannot be read: {error.strerror}"
    return None


def _problem(file: Path, size: int, crc32: int) -> str | None:
    if not file.is_file():
        return "is missing"
    if file.stat().st_size != size:
        return f"has {file.stat().st_size} bytes instead of {size}"
    return None if _crc32(file) == crc32 else "has other content than was written"


def _files(directory: Path) -> Iterator[Path]:
    return (path for path in sorted(directory.rglob("*")) if path.is_file() and path.name != NAME)


def _crc32(file: Path) -> int:
    value = 0
    with file.open("rb") as opened:
        while chunk := opened.read(_CHUNK):
            value = zlib.crc32(chunk, value)
    return value
