"""Tests that run kernels in Triton's interpreter, which a process chooses when it imports Triton.

They are collected only with TRITON_INTERPRET=1, and `tests/kernels/test_interpreter.py` runs them so.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"

collect_ignore_glob = [] if INTERPRETING else ["test_*.py"]


def pytest_addoption(parser: pytest.Parser) -> None:
    help_text = "matrix products add one term after the other, as a machine without a BLAS does"
    parser.addoption("--in-order", action="store_true", help=help_text)


def matmul_in_order(left: np.ndarray, right: np.ndarray, dtype: type = np.float32) -> np.ndarray:
    """numpy.matmul with its rounding fixed: each product is rounded, then each sum, the first term first."""
    left, right = left.astype(dtype), right.astype(dtype)
    total = left[..., :, :1] * right[..., :1, :]
    for k in range(1, left.shape[-1]):
        total += left[..., :, k : k + 1] * right[..., k : k + 1, :]
    return total


@pytest.fixture(scope="session", autouse=True)
def _patched_once() -> Iterator[None]:
    from interpreting import patched_once

    with patched_once():
        yield


@pytest.fixture(scope="session", autouse=True)
def _products(request: pytest.FixtureRequest) -> Iterator[None]:
    """Those of the interpreter, and of the budgets that its kernels are held to."""
    with pytest.MonkeyPatch.context() as patch:
        if request.config.getoption("--in-order"):
            from triton.runtime import interpreter

            import budget

            replaced = SimpleNamespace(**vars(np) | {"matmul": matmul_in_order})
            patch.setattr(interpreter, "np", replaced)
            patch.setattr(budget, "np", replaced)
        yield
