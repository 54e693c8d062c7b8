"""Where an export goes, and in files of what size: checked before anything is read."""

from __future__ import annotations

import re
from pathlib import Path

SIZE = re.compile(r"[1-9]\d*(KB|MB|GB|TB)")


def check_directory(directory: Path) -> None:
    """Raises ValueError unless it is new or empty."""
    if directory.is_symlink() or (directory.exists() and not directory.is_dir()):
        raise ValueError(f"DIR: wanted a new or an empty directory, got {directory}, which is none")
    if directory.is_dir() and any(directory.iterdir()):
        raise ValueError(f"DIR: wanted a new or an empty directory, got {directory}, which holds files")


def check_size(text: str) -> None:
    """Raises ValueError unless transformers reads it as a size of at least a kilobyte."""
    if not SIZE.fullmatch(text):
        raise ValueError(
            f"--max-shard-size: wanted a whole number with KB, MB, GB or TB, such as 5GB, got {text!r}"
        )
