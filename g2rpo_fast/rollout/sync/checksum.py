"""A 64-bit checksum of a tensor's bytes: the same from C++ on a CPU and from PyTorch on any device.

    checksum = bytes + sum_i mix(w_i + (i + 1) * 0x9E3779B97F4A7C15)   mod 2**64

over the 8-byte words w_i, the last filled up with zeros; mix is the finaliser of splitmix64 (Steele, Lea &
Flood 2014), a bijection, so one changed word always shows and several are missed with probability 2**-64.
A sum, so that threads and blocks of a GPU need no order.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from g2rpo_fast import _C

WORDS_AT_ONCE = 1 << 23
"""64 MiB, and four times that in temporaries."""


def checksum(tensor: Tensor, impl: Literal["cpp", "torch"] | None = None) -> int:
    """Of the tensor's elements in row-major order. `impl`: None = cpp on a CPU, torch elsewhere.

    A tensor that is not contiguous is copied first. Waits for the device.
    """
    flat = tensor.detach().contiguous().flatten().view(torch.uint8)
    if flat.data_ptr() % 8 or flat.storage_offset() % 8:
        flat = flat.clone()
    if (impl or ("cpp" if flat.device.type == "cpu" else "torch")) == "cpp":
        return _C.checksum(flat.numpy(), torch.get_num_threads())
    return _checksum(flat)


def _checksum(flat: Tensor) -> int:
    """The twin: int64 arithmetic, which wraps like uint64's."""
    whole = flat.numel() // 8 * 8
    words = flat[:whole].view(torch.int64)
    total = flat.numel()
    for start in range(0, len(words), WORDS_AT_ONCE):
        total += _sum_of_mixed(words[start : start + WORDS_AT_ONCE], start)
    if whole < flat.numel():
        rest = torch.zeros(8, dtype=torch.uint8, device=flat.device)
        rest[: flat.numel() - whole] = flat[whole:]
        total += _sum_of_mixed(rest.view(torch.int64), whole // 8)
    return total % 2**64


def _sum_of_mixed(words: Tensor, start: int) -> int:
    z = torch.arange(start + 1, start + 1 + len(words), device=words.device)
    z = z.mul_(_signed(0x9E3779B97F4A7C15)).add_(words)
    z = z.bitwise_xor_(_shifted(z, 30)).mul_(_signed(0xBF58476D1CE4E5B9))
    z = z.bitwise_xor_(_shifted(z, 27)).mul_(_signed(0x94D049BB133111EB))
    return int(z.bitwise_xor_(_shifted(z, 31)).sum())


def _shifted(z: Tensor, bits: int) -> Tensor:
    """Shifted right with zeros coming in, as of an unsigned number."""
    return (z >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _signed(constant: int) -> int:
    return constant - 2**64 if constant >= 2**63 else constant
