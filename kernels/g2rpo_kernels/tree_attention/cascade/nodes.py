"""The nodes of packed prefix trees: as the planner made them, or read back from END alone.

A node is a maximal run of positions with equal END: rows [start, stop), with descendants in [stop, end).
Two nodes never share a run. The row after a leaf's last row, if any, ends later than the leaf (it belongs to
a sibling, to an ancestor's sibling or to another tree). The row after an internal node's last row is its
first child: with two or more children that one ends before its parent does; with a single child the two form
one unbranched run, which is a node as far as the mask is concerned.

Dimension key: S packed tree positions, N nodes in stream (depth-first) order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

Longs = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """N nodes that tile S rows. Example, a root of three rows with leaves of two and one:

    end_S = 6 6 6 5 5 6
    start_N = 0 3 5,  stop_N = 3 5 6,  end_N = 6 5 6,  parent_N = -1 0 0,  depth_N = 0 1 1
    """

    start_N: Longs
    stop_N: Longs
    end_N: Longs
    parent_N: Longs
    """Index of the parent node; -1 for a root."""

    @classmethod
    def of(cls, start_N: Longs, parent_N: Longs, end_S: torch.Tensor) -> Nodes:
        """Nodes known by their first rows and parents, of the END [S] (integers, on the host) they have."""
        end = end_S.numpy().astype(np.int64)
        stop_N = np.append(start_N[1:], len(end)) if len(start_N) else start_N
        return cls(start_N=start_N, stop_N=stop_N, end_N=end[start_N], parent_N=parent_N)

    def rows(self, first: int, last: int | None = None) -> Longs:
        """Stream rows of node `first`, or of the nodes from `first` to `last`."""
        return np.arange(int(self.start_N[first]), int(self.stop_N[first if last is None else last]))

    @property
    def length_N(self) -> Longs:
        return self.stop_N - self.start_N

    @property
    def depth_N(self) -> Longs:
        """Nodes above each."""
        depths: list[int] = []
        for parent in self.parent_N.tolist():
            depths.append(depths[parent] + 1 if parent >= 0 else 0)
        return np.array(depths, np.int64)

    @property
    def internal_N(self) -> npt.NDArray[np.bool_]:
        return self.end_N > self.stop_N


def nodes_of(end_S: torch.Tensor) -> Nodes:
    """The nodes of `end_S` [S], an integer tensor on any device (read to the host).

    Raises ValueError where subtrees are empty or not nested: such an END describes no tree.
    """
    end = end_S.detach().cpu().numpy().astype(np.int64)
    size = len(end)
    bad = np.flatnonzero((end <= np.arange(size)) | (end > size))
    if len(bad):
        raise ValueError(f"end_S[{bad[0]}]: wanted a value in [{bad[0] + 1}, {size}], got {end[bad[0]]}")
    start = np.flatnonzero(np.diff(end, prepend=-1))
    return Nodes.of(start, _parents(start, end[start]), torch.from_numpy(end))


def longest_path(nodes: Nodes) -> int:
    """Rows on the longest path from a root to a leaf (0 for no rows)."""
    length_N = nodes.length_N.copy()
    for node_id, parent in enumerate(nodes.parent_N):
        if parent >= 0:
            length_N[node_id] += length_N[parent]
    return int(length_N.max(initial=0))


def _parents(start_N: Longs, end_N: Longs) -> Longs:
    parent_N = np.full(len(start_N), -1, np.int64)
    path: list[int] = []
    for node_id, (start, end) in enumerate(zip(start_N.tolist(), end_N.tolist())):
        while path and end_N[path[-1]] <= start:
            path.pop()
        if path:
            if end > end_N[path[-1]]:
                raise ValueError(
                    f"end_S[{start}]: wanted at most {end_N[path[-1]]}, where the subtree around it ends, "
                    f"got {end}"
                )
            parent_N[node_id] = path[-1]
        path.append(node_id)
    return parent_N
