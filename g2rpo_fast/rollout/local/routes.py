"""The experts that decoding goes through, where they are recorded.

Dimension key: B rows, T steps of one block, L layers with experts, K experts of one token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from g2rpo_fast.types import Experts

Watch = Callable[[], AbstractContextManager[list[torch.Tensor]]]
"""Within it, forwards add for each layer with experts the indices that its tokens go to, [tokens, K]."""


@dataclass(frozen=True)
class Record:
    """Of one forward; nothing where none is kept."""

    chosen: list[torch.Tensor] | None

    def of_last_tokens(self, rows: int) -> torch.Tensor | None:
        """[rows, L, K] of the last token of each of the forward's rows, which have one length."""
        if self.chosen is None:
            return None
        return torch.stack([index.unflatten(0, (rows, -1))[:, -1] for index in self.chosen], 1)


@contextmanager
def recorded(watch: Watch | None) -> Iterator[Record]:
    """One forward within it is recorded by `watch`."""
    if watch is None:
        yield Record(None)
        return
    with watch() as chosen:
        yield Record(chosen)


def experts_to_host(routes: Sequence[torch.Tensor]) -> Experts | None:
    """T records [B, L, K] as one array [T, B, L, K]; None where there are none."""
    if not routes:
        return None
    return torch.stack(list(routes)).cpu().numpy().astype(np.int16)
