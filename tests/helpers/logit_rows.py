"""Rows of logits that are easy to get wrong, and what tests of the ops over them share."""

from __future__ import annotations

import math

import torch
from g2rpo_kernels import LogProb
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

SCALINGS = [(1.0, None), (0.7, None), (1.3, 5.0)]
KINDS = ["plain", "up", "down", "confident", "equal", "impossible"]


def weighted(out: LogProb, seed: int = 0) -> Tensor:
    """A scalar whose gradient reaches all three outputs, differently for each row."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(3, len(out.logp_T), generator=generator, dtype=torch.float64)
    return sum(((w.to(x) * x).sum() for w, x in zip(weights, out, strict=True)), out.lse_T.new_zeros(()))


def rows(kind: str, num_rows: int, vocab: int) -> tuple[Tensor, Tensor]:
    """float32 logits of one awkward kind, and targets."""
    generator = torch.Generator().manual_seed(7)
    logits = 3 * torch.randn(num_rows, vocab, generator=generator)
    target = torch.randint(vocab, (num_rows,), generator=generator)
    if kind == "up":
        logits += 50
    if kind == "down":
        logits -= 50
    if kind == "confident":  # p(target) = 0.999
        logits = torch.zeros(num_rows, vocab)
        logits[torch.arange(num_rows), target] = math.log(999 * (vocab - 1))
    if kind == "equal":
        logits = torch.full((num_rows, vocab), 2.5)
    if kind == "impossible":
        logits[:, ::3] = -torch.inf
        target = target // 3 * 3 + 1
    return logits, target


class LargestTensor(TorchDispatchMode):
    """Bytes of the largest storage that any op's result has, inputs excepted."""

    def __init__(self, *inputs: Tensor) -> None:
        super().__init__()
        self.known = {x.untyped_storage().data_ptr() for x in inputs}
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(value, Tensor) and value.untyped_storage().data_ptr() not in self.known:
                self.bytes = max(self.bytes, value.untyped_storage().nbytes())
        return out
