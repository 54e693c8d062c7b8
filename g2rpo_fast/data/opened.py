"""Files of data, opened; by their name they are unpacked on the way (`.gz`, `.zst`)."""

from __future__ import annotations

import gzip
import importlib
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO, cast

PACKED = (".gz", ".zst")
KINDS = {".csv": "CSV", ".parquet": "Parquet", ".json": "JSON"}
"""What files are whose names end so; others are JSON lines."""
EXTRA = 'pip install "g2rpo-fast[data]"'


def opened(path: str, *, key: str) -> BinaryIO:
    """The file, to be read and closed.

    Raises:
        ValueError: no such file, or one that cannot be opened; names the configuration `key`.
    """
    if not Path(path).is_file():
        kind = KINDS.get(unpacked_suffix(path), "JSON lines")
        raise ValueError(f"{key}: wanted a file of {kind}, got {path!r}, which is not a file")
    try:
        if path.endswith(".gz"):
            return cast(BinaryIO, gzip.open(path, "rb"))
        if path.endswith(".zst"):
            wanted("pyarrow", path, key=key)
            arrow = importlib.import_module("pyarrow")
            return io.BufferedReader(arrow.CompressedInputStream(arrow.OSFile(path), "zstd"))
        return open(path, "rb")
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"{key}: wanted a file that can be read, got {path!r} ({reason})") from error


@contextmanager
def unpacked(path: str, *, key: str) -> Iterator[None]:
    """Around reading what `opened` gave. Raises ValueError: it is not packed as its name says, or cut off."""
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(
            f"{key}: wanted a file that can be read to its end, got {path!r} ({error})"
        ) from error


def unpacked_suffix(path: str) -> str:
    """Of `rows.csv.gz`: `.csv`."""
    name = Path(path)
    return (name.with_suffix("") if name.suffix in PACKED else name).suffix


def wanted(package: str, place: str, *, key: str) -> None:
    """Raises ValueError where the package that the place takes is not installed."""
    if find_spec(package) is None:
        raise ValueError(f"{key}: wanted the package {package} for {place} ({EXTRA}), got none")
