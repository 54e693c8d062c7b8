"""How a tree's nodes follow each other, for layers that look along a path: all indices of one forward.

    nodes of the stream     0 0 0 1 1 2 2 2 3        parents -1 0 0 2
    for a convolution       . . 0 0 0 0 0 1 1 0 0 2 2 2 2 2 3    each with the inputs before it on its path
    for a scan              level 0: 0    level 1: 1 2    level 2: 3, each from the state that its parent left

Dimension key: S stream positions, Q nodes, L positions of the stream laid out for a convolution, H of them
that repeat one of U of another node, N nodes of one batch, P positions of theirs, M nodes of one level.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from g2rpo_kernels.transfer import to_device
from torch import Tensor

from g2rpo_fast.model.padded import alike
from g2rpo_fast.types import Longs, TreePlan

SHORTEST = 16
"""Nodes shorter than this are as good as this long, to a chunk."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Nodes of one level that are scanned side by side, padded at their ends."""

    num_nodes: int
    length: int
    """Of the longest."""
    position_P: Tensor
    """Their stream positions, node after node."""
    place_P: Tensor
    """Where these are in [N * length]."""
    parent_N: Tensor | None
    """Each node's parent among the nodes of the level above; None = roots."""


@dataclass(frozen=True, kw_only=True)
class Laid:
    """The stream with each node's history put before it: what a convolution of so many taps reads."""

    length: int
    own_S: Tensor
    """Where each position of the stream is."""
    before_U: Tensor
    """Stream positions that are read again."""
    history_H: Tensor
    """Which of these, before each node; where a path has just begun there are zeros instead."""
    place_H: Tensor
    """Where these are."""


class Segments:
    """A plan's nodes, on a device. Convolutions' indices are made when one first asks, and kept."""

    def __init__(self, plan: TreePlan, device: torch.device) -> None:
        self._device = device
        self._start_Q, self._parent_Q = plan.node_start_Q, plan.node_parent_Q
        self.size = len(plan.token_S)
        self._length_Q = np.diff(self._start_Q, append=self.size)
        self._laid: dict[int, Laid] = {}
        self.levels, self.order_S = self._levels()

    def laid(self, num_taps: int) -> Laid:
        """For a causal convolution of `num_taps` taps."""
        if num_taps not in self._laid:
            self._laid[num_taps] = self._laid_out(num_taps - 1)
        return self._laid[num_taps]

    def _laid_out(self, reach: int) -> Laid:
        last_Q = np.where(self._parent_Q < 0, -1, (self._start_Q + self._length_Q - 1)[self._parent_Q])
        before_S = np.arange(-1, self.size - 1)
        before_S[self._start_Q] = last_Q
        history_QH = np.empty((len(last_Q), reach), np.int64)
        for back in range(reach):
            history_QH[:, reach - 1 - back] = last_Q
            last_Q = np.where(last_Q < 0, -1, before_S[last_Q])
        first_Q = self._start_Q + reach * np.arange(len(last_Q))
        own_S = np.arange(self.size) + np.repeat(reach * np.arange(1, len(last_Q) + 1), self._length_Q)
        there_QH = history_QH >= 0
        place_QH = first_Q[:, None] + np.arange(reach)
        before_U, history_H = np.unique(history_QH[there_QH], return_inverse=True)
        arrays = own_S, before_U, history_H, place_QH[there_QH]
        own_S, before_U, history_H, place_H = to_device([torch.from_numpy(x) for x in arrays], self._device)
        length = self.size + reach * len(last_Q)
        return Laid(length=length, own_S=own_S, before_U=before_U, history_H=history_H, place_H=place_H)

    def _levels(self) -> tuple[list[list[Batch]], Tensor]:
        """Each level's batches; and of each stream position, its place among the positions of all batches."""
        depth_Q = _depth(self._parent_Q)
        place_Q = np.zeros(len(depth_Q), np.int64)
        sizes: list[list[tuple[int, int]]] = []
        arrays: list[Longs] = []
        for level in range(int(depth_Q.max()) + 1):
            nodes_M = np.flatnonzero(depth_Q == level)
            groups = [nodes_M[group] for group in alike(np.maximum(self._length_Q[nodes_M], SHORTEST))]
            place_Q[np.concatenate(groups)] = np.arange(len(nodes_M))
            sizes.append([(len(nodes_N), int(self._length_Q[nodes_N].max())) for nodes_N in groups])
            for nodes_N, (_, longest) in zip(groups, sizes[-1]):
                arrays += [*self._padded(nodes_N, longest), place_Q[self._parent_Q[nodes_N]]]
        order_S = np.argsort(np.concatenate(arrays[0::3]))
        sent = iter(to_device([torch.from_numpy(x) for x in (*arrays, order_S)], self._device))
        levels = [
            [_batch(size, next(sent), next(sent), next(sent), roots=not level) for size in of_level]
            for level, of_level in enumerate(sizes)
        ]
        return levels, next(sent)

    def _padded(self, nodes_N: Longs, longest: int) -> tuple[Longs, Longs]:
        length_N = self._length_Q[nodes_N]
        within_P = np.arange(length_N.sum()) - np.repeat(np.cumsum(length_N) - length_N, length_N)
        position_P = np.repeat(self._start_Q[nodes_N], length_N) + within_P
        return position_P, np.repeat(longest * np.arange(len(nodes_N)), length_N) + within_P


def _batch(
    size: tuple[int, int], position_P: Tensor, place_P: Tensor, parent_N: Tensor, *, roots: bool
) -> Batch:
    return Batch(
        num_nodes=size[0],
        length=size[1],
        position_P=position_P,
        place_P=place_P,
        parent_N=None if roots else parent_N,
    )


def _depth(parent_Q: Longs) -> Longs:
    """Of each node, how many it continues."""
    depth_Q = np.zeros(len(parent_Q), np.int64)
    above_Q = parent_Q
    while (above_Q >= 0).any():
        depth_Q += above_Q >= 0
        above_Q = np.where(above_Q < 0, -1, parent_Q[above_Q])
    return depth_Q
