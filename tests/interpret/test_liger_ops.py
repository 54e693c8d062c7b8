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

from g2rpo_fast.memory import layer_bytes, shape_of
from g2rpo_fast.model.forward import tree_hidden
from g2rpo_fast.model.liger_ops import is_fused, use_liger_ops
from g2rpo_fast.model.products import rounded_weights
from g2rpo_fast.tree import plan_trees
from g2rpo_fast.types import Sequences
from liger_cases import check_case, check_model, norm_case, rope_case, swiglu_case
from wide_models import wide

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


def test_layers_keep_what_is_counted_of_them() -> None:
    """Under autocast, weights rounded once: the tensors saved for backward, each storage once."""
    model, length, half = wide(Qwen3Config), 64, torch.float16
    assert not is_fused(model)
    use_liger_ops(model)
    assert is_fused(model)
    row = Sequences(
        ids_N=np.arange(length + 1, dtype=np.int32) % 60,
        ptr_R1=np.array([0, length + 1]),
        trained_N=np.arange(length + 1) > 0,
        group_R=np.zeros(1, np.int32),
    )
    (plan,) = plan_trees(row)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    with (
        rounded_weights(model, half),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x),
        torch.autocast("cpu", half),
    ):
        tree_hidden(model, plan, attention="cascade")
    shape = shape_of(model, compute_dtype=half, checkpointing=False, fused=True)
    heads = (shape.num_heads + shape.num_kv_heads) * shape.head_width
    wider = 2 * heads * (4 - 2)  # attention is float32 on a CPU
    counted = shape.num_layers * (layer_bytes(shape) + wider)
    assert 0.95 * counted < sum(kept.values()) / length < 1.1 * counted
    plain = shape_of(model, compute_dtype=half, checkpointing=False)
    assert layer_bytes(shape) < 0.65 * layer_bytes(plain)
