"""Packages that a choice takes and that only an extra of ours installs."""

from __future__ import annotations

from importlib.util import find_spec


def require(package: str, what: str, *, extra: str) -> None:
    """ValueError, beginning with `what`, where a package of an extra of ours is not installed."""
    if find_spec(package) is None:
        raise ValueError(
            f"{what}, which takes the package {package}, got none installed: "
            f"pip install 'g2rpo-fast[{extra}]'"
        )
