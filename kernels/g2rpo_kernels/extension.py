"""The package's C++ extension, built from csrc/kernels/ where the package is installed with a compiler."""

from __future__ import annotations

import importlib
import importlib.util
from functools import cache
from types import ModuleType

EXTENSION = "g2rpo_kernels._cpu"


@cache
def loaded(name: str) -> ModuleType | None:
    """The module of this name, None where it was not built."""
    return importlib.import_module(name) if importlib.util.find_spec(name) else None
