"""Several small tensors to a device in one copy that nothing waits for.

A plan is a dozen index vectors: one blocking copy each would stop the host until the device has done all that
was asked of it before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

ALIGNED = 16
"""Bytes: each tensor begins at a multiple, as Triton's kernels are compiled for."""


def to_device(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """The same values on `device`. CPU tensors go to CUDA side by side, in one copy; others by `.to`."""
    on_host = [tensor for tensor in tensors if tensor.device.type == "cpu"]
    if device.type != "cuda" or not on_host or torch.compiler.is_compiling():
        return [tensor.to(device) for tensor in tensors]
    sent = iter(unpacked(packed(on_host, pin=True).to(device, non_blocking=True), on_host))
    return [next(sent) if tensor.device.type == "cpu" else tensor.to(device) for tensor in tensors]


def packed(tensors: Sequence[Tensor], *, pin: bool) -> Tensor:
    """[bytes] uint8: the tensors' values, contiguous, each from a multiple of `ALIGNED`."""
    held = torch.empty(sum(map(_room, tensors)), dtype=torch.uint8, pin_memory=pin)
    for view, tensor in zip(unpacked(held, tensors), tensors, strict=True):
        view.copy_(tensor)
    return held


def unpacked(held: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Views of what `packed` made, in the shapes and dtypes of `like`."""
    parts = held.split([_room(tensor) for tensor in like])
    return [
        part[: tensor.numel() * tensor.element_size()].view(tensor.dtype).view(tensor.shape)
        for part, tensor in zip(parts, like, strict=True)
    ]


def _room(tensor: Tensor) -> int:
    return math.ceil(tensor.numel() * tensor.element_size() / ALIGNED) * ALIGNED
