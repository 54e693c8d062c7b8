"""A headless Chromium, where this machine has one."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def browser() -> str:
    """Its path; without one the test is skipped."""
    found = [path for name in NAMES if (path := shutil.which(name))]
    if not found:
        pytest.skip(f"no headless browser here: none of {', '.join(NAMES)}")
    return found[0]


def loaded(page: Path) -> str:
    """The document after its scripts have run."""
    return _run(page, "--dump-dom")


def pictured(page: Path, picture: Path, *, width: int, height: int, dark: bool) -> None:
    """A PNG of the page's top."""
    theme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    _run(page, f"--screenshot={picture}", f"--window-size={width},{height}", "--hide-scrollbars", theme)


def _run(page: Path, *options: str) -> str:
    command = [browser(), "--headless", "--no-sandbox", "--disable-gpu", *options, page.resolve().as_uri()]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
