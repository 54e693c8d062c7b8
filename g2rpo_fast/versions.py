"""Which versions compute."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("g2rpo-fast", "torch", "transformers", "tokenizers")


def versions() -> dict[str, str]:
    """Of Python, this program and what it rests on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "a checkout"
    return found
