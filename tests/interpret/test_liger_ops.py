"""Liger's kernels in the interpreter, in the place of transformers' modules: the float64 budget.

Liger's kernels convert the numbers that they are given, which here are Python's, and take `rsqrt` from a
library of the GPU's.
"""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from transformers import Qwen2Config, Qwen3Config
from triton.runtime import interpreter

from liger_cases import check_case, check_model, norm_case, rope_case, swiglu_case

rms_norm = pytest.importorskip("liger_kernel.ops.rms_norm", reason="liger-kernel is not installed")

DTYPES = (torch.float32, torch.float16)


@triton.jit
def rsqrt(x):
    return tl.rsqrt(x)


@pytest.fixture(scope="module", autouse=True)
def _numbers_as_a_gpu_has_them() -> Iterator[None]:
    convert = interpreter._implicit_cvt

    def converted(argument):
        if isinstance(argument, float):
            return tl.tensor(
                interpreter.TensorHandle(np.array([argument], np.float32), tl.float32), tl.float32
            )
        return convert(argument)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_implicit_cvt", converted)
        patch.setattr(rms_norm, "rsqrt", rsqrt)
        yield


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_rows", "width"), [(1, 1), (7, 33), (5, 128)])
def test_rows_are_within_the_budget(num_rows: int, width: int, dtype: torch.dtype) -> None:
    check_case(norm_case(num_rows, width), dtype, "cpu")
    check_case(swiglu_case(num_rows, width), dtype, "cpu")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("batch", "one_batch"), [(1, True), (3, True), (3, False)])
def test_rope_is_within_the_budget(batch: int, one_batch: bool, dtype: torch.dtype) -> None:
    check_case(rope_case(batch, 5, (4, 2), 12, one_batch=one_batch), dtype, "cpu")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [Qwen2Config, Qwen3Config])
def test_models_are_within_the_budget(kind: type, dtype: torch.dtype) -> None:
    check_model(kind, dtype, "cpu")
