"""The nodes of packed prefix trees: as the planner made them, or read back from END alone.

A node is a maximal run of positions with equal END: rows [start, stop), with descendants in [stop, end).
Two nodes never share a run. The row after a leaf's last row, if any, ends later than the leaf (it belongs to
a sibling, to an ancestor's sibling or to another tree). The row after an internal node's last row is its
first child: with two or more children that one ends before its parent does; with a single child the two form
one unbranched run, which is a node as far as the mask is concerned.

Dimension key: S packed tree positions, N nodes in stream (depth-first) order; int64 on the host.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """N nodes that tile S rows. Example, a root of three rows with leaves of two and one:

    end_S = 6 6 6 5 5 6
    start_N = 0 3 5,  stop_N = 3 5 6,  end_N = 6 5 6,  parent_N = -1 0 0,  depth_N = 0 1 1
    """

    start_N: Tensor
    stop_N: Tensor
    end_N: Tensor
    parent_N: Tensor
    """Index of the parent node; -1 for a root."""

    @classmethod
    def of(cls, start_N: Tensor, parent_N: Tensor, end_S: Tensor) -> Nodes:
        """Nodes known by their first rows and parents (int64), of the END [S] (integers) that they have; all
        on the host."""
        stop_N = torch.cat([start_N[1:], start_N.new_tensor([len(end_S)])]) if len(start_N) else start_N
        return cls(start_N=start_N, stop_N=stop_N, end_N=end_S[start_N].long(), parent_N=parent_N)

    @property
    def length_N(self) -> Tensor:
        return self.stop_N - self.start_N

    @property
    def depth_N(self) -> Tensor:
        """Nodes above each."""
        depths: list[int] = []
        for parent in self.parent_N.tolist():
            depths.append(depths[parent] + 1 if parent >= 0 else 0)
        return torch.tensor(depths, dtype=torch.int64)

    @property
    def internal_N(self) -> Tensor:
        return self.end_N > self.stop_N


def nodes_of(end_S: Tensor) -> Nodes:
    """The nodes of `end_S` [S], an integer tensor on any device (read to the host).

    Raises ValueError where subtrees are empty or not nested: such an END describes no tree.
    """
    end_S = end_S.detach().cpu().long()
    size = len(end_S)
    bad = ((end_S <= torch.arange(size)) | (end_S > size)).nonzero()
    if len(bad):
        row = int(bad[0])
        raise ValueError(f"end_S[{row}]: wanted a value in [{row + 1}, {size}], got {int(end_S[row])}")
    start_N = torch.diff(end_S, prepend=end_S.new_tensor([-1])).nonzero()[:, 0]
    return Nodes.of(start_N, _parents(start_N.tolist(), end_S[start_N].tolist()), end_S)


def longest_path(nodes: Nodes) -> int:
    """Rows on the longest path from a root to a leaf (0 for no rows)."""
    paths: list[int] = []
    for length, parent in zip(nodes.length_N.tolist(), nodes.parent_N.tolist()):
        paths.append(length + (paths[parent] if parent >= 0 else 0))
    return max(paths, default=0)


def _parents(starts: list[int], ends: list[int]) -> Tensor:
    parents: list[int] = []
    path: list[int] = []
    for node_id, (start, end) in enumerate(zip(starts, ends)):
        while path and ends[path[-1]] <= start:
            path.pop()
        if path and end > ends[path[-1]]:
            most = ends[path[-1]]
            raise ValueError(
                f"end_S[{start}]: wanted at most {most}, where the subtree around it ends, got {end}"
            )
        parents.append(path[-1] if path else -1)
        path.append(node_id)
    return torch.tensor(parents, dtype=torch.int64)
