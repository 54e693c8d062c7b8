"""Modules as a user has them: a file in the directory where a run is started."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def own_module(name: str, source: str, directory: Path, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """`name` holds `source`, in the working directory; afterwards nothing of it is left in this process."""
    (directory / f"{name}.py").write_text(source)
    patch.chdir(directory)
    patch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop(name, None)
