"""Liger's norms, RoPE and SwiGLU on a GPU: the float64 budget, alone and in models; bit-for-bit repeats."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import Qwen3Config

from liger_cases import (
    KINDS,
    check_case,
    check_model,
    hidden_and_gradients,
    norm_case,
    rope_case,
    swiglu_case,
    tiny,
)

pytest.importorskip("liger_kernel", reason="liger-kernel is not installed")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DTYPES = (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_rows", "width"), [(3, 17), (257, 1024), (33_001, 128), (7, 12_288)])
def test_rows_are_within_the_budget(num_rows: int, width: int, dtype: torch.dtype) -> None:
    """33,001 narrow rows take Liger's kernels of many rows a block, the last of them not full."""
    check_case(norm_case(num_rows, width), dtype, "cuda")
    check_case(swiglu_case(num_rows, width), dtype, "cuda")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("batch", "one_batch"), [(1, True), (3, True), (3, False)])
@pytest.mark.parametrize("width", [12, 64, 128])
def test_rope_is_within_the_budget(width: int, batch: int, one_batch: bool, dtype: torch.dtype) -> None:
    check_case(rope_case(batch, 77, (16, 8), width, one_batch=one_batch), dtype, "cuda")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_models_are_within_the_budget(kind: type, dtype: torch.dtype) -> None:
    check_model(kind, dtype, "cuda")


@pytest.mark.parametrize("dtype", DTYPES)
def test_loaded_models_compute_through_liger_and_repeat_bit_for_bit(tmp_path, dtype: torch.dtype) -> None:
    from g2rpo_fast.model import ModelConfig
    from g2rpo_fast.model.load import load_model

    tiny(Qwen3Config).save_pretrained(tmp_path)
    model = load_model(str(tmp_path), ModelConfig(gradient_checkpointing=True), "cuda")
    taken = [type(m).__name__ for m in model.modules() if "forward" in vars(m)]
    assert {"Qwen3RMSNorm", "Qwen3MLP", "Qwen3Attention"} <= set(taken)
    first, second = (hidden_and_gradients(copy.deepcopy(model), dtype) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
