"""Runs tests/interpret in a process of its own, where Triton's interpreter is on."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy
import pytest

triton = pytest.importorskip("triton")

FOLDER = Path(__file__).parent / "interpret"


def release(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")[:2]))


@pytest.mark.skipif(
    release(triton.__version__) < (3, 7) and release(numpy.__version__) >= (2, 4),
    reason="Triton 3.6's interpreter takes one-element arrays for numbers: wanted NumPy below 2.4 with it",
)
def test_kernels_in_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(FOLDER)]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        command, env=environment, cwd=FOLDER.parents[1], capture_output=True, text=True, check=False
    )
    tail = "\n".join((done.stdout + done.stderr).splitlines()[-60:])
    assert done.returncode == 0, tail
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed, tail
    assert int(passed[1]) >= 100
