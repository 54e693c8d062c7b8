"""Runs of edges that hold whole rows (sequences), for objectives that tie a row's edges together.

A cut between two edges is allowed where no row has edges on both sides. In a packed stream of prefix trees
that is between trees at least: the rows of one tree share edges.

Dimension key: T trained edges, M (edge, member) pairs, B rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from g2rpo_kernels.policy_loss.records import Edges


def row_cuts(edges: Edges) -> tuple[int, ...]:
    """Positions in (0, T] before which the edges may be cut, ascending, T last. Members on the CPU."""
    ptr_T1, row_M = edges.member_ptr_T1, edges.member_row_M
    assert ptr_T1 is not None
    assert row_M is not None
    num_edges = len(ptr_T1) - 1
    edge_M = torch.repeat_interleave(ptr_T1.diff(), output_size=len(row_M))
    return cuts_between(edge_M, row_M, num_edges, edges.num_rows)


def cuts_between(edge_M: Tensor, row_M: Tensor, num_edges: int, num_rows: int) -> tuple[int, ...]:
    """`row_cuts` of edges that belong to rows pair by pair; on the CPU."""
    first_B = torch.full((num_rows,), num_edges).scatter_reduce_(0, row_M, edge_M, "amin")
    last_B = torch.full((num_rows,), -1).scatter_reduce_(0, row_M, edge_M, "amax")
    used_B = last_B >= 0
    # A row with edges first..last crosses the positions first + 1..last.
    crossings = torch.bincount(first_B[used_B] + 1, minlength=num_edges + 2)
    crossings -= torch.bincount(last_B[used_B] + 1, minlength=num_edges + 2)
    free = crossings.cumsum(0)[1 : num_edges + 1] == 0
    return tuple((free.nonzero().squeeze(1) + 1).tolist())


def whole_row_runs(cuts: Sequence[int], most: int) -> list[slice]:
    """Runs between cuts: of at most `most` edges where a cut allows it, else up to the next cut."""
    runs: list[slice] = []
    start = stop = 0
    for cut in cuts:
        if cut - start > most and stop > start:
            runs.append(slice(start, stop))
            start = stop
        stop = cut
    return [*runs, slice(start, stop)] if stop > start else runs
