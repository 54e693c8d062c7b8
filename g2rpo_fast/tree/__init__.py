"""Prefix trees of groups, packed into micro-batches: rows of tokens in, `TreePlan` records out.

Rows of one group that begin with the same tokens share those positions. A stream holds each position once,
in depth-first order, and query i sees key j iff `j <= i < end_S[j]`, which is "j is on i's path". The trained
tokens become edges (source position, target token), each with the row tokens that it stands for.

    rows 1 5 6 [7 8 11 2] and 1 5 6 [7 12 2] of one group, trained tokens in brackets:

    index       0  1  2  3  4  5  6        edges (source, target): members
    token_S     1  5  6  7  8 11 12          (2, 7): both rows' 7     (3, 8) (4, 11) (5, 2): row 0
    position_S  0  1  2  3  4  5  4          (3, 12) (6, 2): row 1
    end_S       7  7  7  7  6  6  7        nodes: start 0 4 6, parent -1 0 0

`csrc/` builds the plans (`impl="cpp"`); `twin.py` defines them (`impl="python"`).

Dimension key: R rows, N tokens of all rows end to end, S stream positions, T edges, M (edge, member) pairs,
B rows of one plan, Q nodes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from g2rpo_fast import _C
from g2rpo_fast.bounds import Ge, check_fields
from g2rpo_fast.tree import twin
from g2rpo_fast.tree.check import check_sequences
from g2rpo_fast.types import Sequences, TreePlan

Sharing = Literal["auto", "off", "required"]
UNSHARED = 1 << 62
"""The `min_saved` that nothing reaches: every tree is one row, with those that it repeats or begins with."""


@dataclass(frozen=True, kw_only=True)
class TreeConfig:
    """How sequences become micro-batches."""

    token_budget: Annotated[int, Ge(1)] | None = None
    """Most stream positions in one micro-batch. None = as many as fit the free memory of the GPU when the run
    begins, 8192 on a CPU; the run keeps that number."""
    min_saved: Annotated[int, Ge(1)] = 1
    """Share a node only if that saves at least this many tokens: (its branches - 1) x its length."""
    sharing: Sharing = "auto"
    """Of prefixes, by the rows of an update. auto = where the model gives the same logits on a small tree as
    on each of its paths, which is checked when it is loaded, else each row by itself, and says so; off = each
    row by itself; required = refuse a model that cannot share."""

    def __post_init__(self) -> None:
        check_fields(self, "tree")

    def settled(self, *, follows_trees: bool) -> TreeConfig:
        """With the `min_saved` that `sharing` comes to for a model that follows trees, or does not."""
        shares = follows_trees and self.sharing != "off"
        return self if shares else replace(self, min_saved=UNSHARED)

    @property
    def shares(self) -> bool:
        """Whether plans may share anything."""
        return self.min_saved < UNSHARED


def plan_trees(
    sequences: Sequences,
    *,
    token_budget: int | None = None,
    min_saved: int = 1,
    whole: bool = False,
    impl: Literal["cpp", "python"] = "cpp",
) -> list[TreePlan]:
    """The rows' prefix trees, one per group, packed into plans of at most `token_budget` positions.

    A row encodes its tokens up to, not including, its last trained one (which is only a target), or all of
    them with `whole`. Rows that encode nothing are in no plan: every plan has a position, every `last_B` is
    one. Every trained token of `sequences` is a member of exactly one edge of exactly one plan.

    Nodes branch in order of first appearance, groups count by first appearance, `row_B` ascends within a
    tree. Edges are in order of source, then of first appearance; an edge's members ascend. Trees are placed
    largest first, each in the first plan that has room. A tree that is over the budget by itself is first cut
    into parts of consecutive rows (in depth-first order of their ends), each with its own copy of what they
    share. A plan is over the budget only if it is a single path.

    Args:
        sequences: the rows. Groups may have any size and their rows may lie anywhere.
        token_budget: most positions per plan, >= 1; None puts everything in one plan.
        min_saved: >= 1. A node is shared only if (branches - 1) x length reaches it; otherwise each branch
            has its own copy (rows that end in it use the first). Only S depends on it, no result does.
        whole: encode all tokens, for prefill or scoring, trained or not.
        impl: "cpp", or "python" for the twin that defines the result.

    Raises:
        ValueError: a malformed `sequences` (row, wanted, got), or a budget or `min_saved` below 1.
    """
    check_sequences(sequences)
    if token_budget is not None and token_budget < 1:
        raise ValueError(f"token_budget: wanted None or at least 1, got {token_budget}")
    if min_saved < 1:
        raise ValueError(f"min_saved: wanted at least 1, got {min_saved}")
    return _IMPLS[impl](sequences, token_budget, min_saved, whole)


def _plan_cpp(sequences: Sequences, token_budget: int | None, min_saved: int, whole: bool) -> list[TreePlan]:
    arrays = (sequences.ids_N, sequences.ptr_R1, sequences.trained_N, sequences.group_R)
    return [TreePlan(**fields) for fields in _C.plan_trees(*arrays, token_budget, min_saved, whole)]


_IMPLS = {"cpp": _plan_cpp, "python": twin.plan_trees}
