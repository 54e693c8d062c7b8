"""Which bytes of memory tensors take, exactly: what a copy plan writes against what a model's parameters are.

A tensor takes a set of runs, half-open intervals [start, end) of addresses: int64 [N, 2], N runs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from g2rpo_fast.types import Longs

MAX_RUNS = 1 << 22
"""Of one tensor; a loader that scatters more finely than that is none to replay."""


def runs_of(tensor: Tensor) -> Longs:
    """The runs of a strided tensor, in ascending order. ValueError where there are more than `MAX_RUNS`."""
    size = tensor.element_size()
    dims = sorted(
        (stride * size, extent)
        for extent, stride in zip(tensor.shape, tensor.stride(), strict=True)
        if extent != 1
    )
    if tensor.numel() == 0:
        return np.empty((0, 2), dtype=np.int64)
    inner = size
    while dims and dims[0][0] == inner:
        inner *= dims.pop(0)[1]
    count = int(np.prod([extent for _, extent in dims], dtype=np.int64))
    if count > MAX_RUNS:
        raise ValueError(f"wanted at most {MAX_RUNS} runs of bytes, got {count}")
    starts = np.array([tensor.data_ptr()], dtype=np.int64)
    for stride, extent in dims:
        starts = (starts[None, :] + stride * np.arange(extent, dtype=np.int64)[:, None]).ravel()
    return np.stack([starts, starts + inner], axis=1)


def joined(runs: Sequence[Longs]) -> Longs:
    """The union of runs, sorted, neighbours merged."""
    every = np.concatenate([*runs, np.empty((0, 2), dtype=np.int64)])
    if not len(every):
        return every
    every = every[np.argsort(every[:, 0], kind="stable")]
    reach = np.maximum.accumulate(every[:, 1])
    first = np.append(True, every[1:, 0] > reach[:-1])
    last = np.append(first[1:], True)
    return np.stack([every[first, 0], reach[last]], axis=1)


def bytes_of(runs: Longs) -> int:
    return int((runs[:, 1] - runs[:, 0]).sum())


def bytes_inside(runs: Longs, union: Longs) -> int:
    """Bytes of `runs` (disjoint) that lie in `union` (as `joined` returns it)."""
    if not len(runs) or not len(union):
        return 0
    before = np.append(0, np.cumsum(union[:, 1] - union[:, 0]))

    def below(address: Longs) -> Longs:
        """Bytes of the union below each address."""
        place = np.searchsorted(union[:, 0], address, side="right") - 1
        inside = np.minimum(address, union[np.maximum(place, 0), 1]) - union[np.maximum(place, 0), 0]
        return np.where(place < 0, 0, before[np.maximum(place, 0)] + inside)

    return int((below(runs[:, 1]) - below(runs[:, 0])).sum())
