"""Runs tests/interpret in processes of their own, where Triton's interpreter is on.

Each file on this machine as it is; those of kernels that multiply matrices also in the arithmetic of another.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy
import pytest

triton = pytest.importorskip("triton")

FOLDER = Path(__file__).parents[1] / "interpret"
LONGEST = ["triton_tree_attention", "triton_padded", "triton_tree_model", "random_cases"]
FILES = [*LONGEST, *sorted({path.stem[5:] for path in FOLDER.glob("test_*.py")}.difference(LONGEST))]
DEEP = [file for file in FILES if "pytest.mark.deep" in (FOLDER / f"test_{file}.py").read_text()]
PLAIN = {
    "ATEN_CPU_CAPABILITY": "default",
    "NPY_DISABLE_CPU_FEATURES": " ".join(numpy.show_config(mode="dicts")["SIMD Extensions"].get("found", ())),
}
"""PyTorch and NumPy without the vector instructions that not every processor has."""


def release(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")[:2]))


def interpret(file: str, *options: str, **environment: str) -> int:
    """The number of tests that passed; all did."""
    pytest_of = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command = [*pytest_of, str(FOLDER / f"test_{file}.py"), *options]
    environment = os.environ | {"TRITON_INTERPRET": "1"} | environment
    done = subprocess.run(
        command, env=environment, cwd=FOLDER.parents[1], capture_output=True, text=True, check=False
    )
    tail = "\n".join((done.stdout + done.stderr).splitlines()[-60:])
    assert done.returncode == 0, tail
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed, tail
    return int(passed[1])


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        release(triton.__version__) < (3, 7) and release(numpy.__version__) >= (2, 4),
        reason="Triton 3.6's interpreter takes one-element arrays for numbers: it needs NumPy below 2.4",
    ),
]


@pytest.mark.parametrize("file", FILES)
def test_kernels_in_the_interpreter(file: str) -> None:
    assert interpret(file) > 0


@pytest.mark.deep
@pytest.mark.parametrize("file", DEEP)
def test_kernels_in_the_interpreter_at_length(file: str) -> None:
    assert interpret(file, "-m", "deep") > 0


@pytest.mark.parametrize(
    "file", ["triton_tree_attention", pytest.param("triton_tree_model", marks=pytest.mark.deep)]
)
def test_kernels_in_the_interpreter_of_a_plain_machine(file: str) -> None:
    """Those tests whose numbers are the most sensitive to the order of sums."""
    assert interpret(file, "--in-order", "-k", "confident or widths or share_keys or model", **PLAIN) > 0


@pytest.mark.deep
def test_all_kernels_of_attention_in_the_interpreter_of_a_plain_machine() -> None:
    assert interpret("triton_tree_attention", "--in-order", **PLAIN) > 0
