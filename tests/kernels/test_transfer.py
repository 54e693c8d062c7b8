"""Tensors that travel side by side arrive as they were, in shape, dtype and place."""

import torch
from g2rpo_kernels.transfer import ALIGNED, packed, to_device, unpacked


def given() -> list[torch.Tensor]:
    return [
        torch.arange(5, dtype=torch.int32),
        torch.randn(3, 4, dtype=torch.float64).t(),
        torch.zeros(0, dtype=torch.int64),
        torch.tensor(True),
        torch.randn(7, dtype=torch.bfloat16),
        torch.arange(2)[None],
    ]


def test_packed_tensors_come_back_equal_and_aligned():
    tensors = given()
    held = packed(tensors, pin=False)
    views = unpacked(held, tensors)
    for view, tensor in zip(views, tensors, strict=True):
        assert view.dtype == tensor.dtype
        assert torch.equal(view, tensor)
        assert (view.data_ptr() - held.data_ptr()) % ALIGNED == 0
    assert len(held) == 32 + 96 + 0 + 16 + 16 + 16


def test_on_a_cpu_nothing_is_copied():
    tensors = given()
    assert all(a is b for a, b in zip(to_device(tensors, torch.device("cpu")), tensors, strict=True))
