"""Files that are written whole or not at all, and errors that name what could not be written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError


class WriteError(OSError):
    """A file could not be written (a full disk, a quota, missing rights); the cause is chained."""

    def __init__(self, path: Path, cause: Exception) -> None:
        self.path = path
        reason = getattr(cause, "strerror", None) or str(cause).strip().splitlines()[0]
        super().__init__(f"{path} could not be written: {reason}")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around what writes `path`.

    Raises:
        WriteError: for OSError, and for the errors of safetensors and `torch.save`, which are none.
    """
    try:
        yield
    except WriteError:
        raise
    except (OSError, SafetensorError, RuntimeError) as error:
        raise WriteError(path, error) from error


def write_text(path: Path, text: str) -> None:
    """Replaces the file at once; on an error the old one stays. Raises WriteError."""
    temporary = path.with_suffix(".tmp")
    with writing(path):
        try:
            temporary.write_text(text)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def new_directory(final: Path, temporary: Path) -> Iterator[Path]:
    """A directory to fill, which takes the place of `final` when it is complete and flushed to disk.

    Whatever stops the filling removes it. Raises WriteError, naming the file where the filling says which.
    """
    shutil.rmtree(temporary, ignore_errors=True)
    with writing(final):
        try:
            temporary.mkdir(parents=True)
            yield temporary
            for file in temporary.rglob("*"):
                flush(file)
            flush(temporary)
            shutil.rmtree(final, ignore_errors=True)
            os.rename(temporary, final)
            flush(final.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def flush(path: Path) -> None:
    """Waits until the disk has the file or directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
