"""Cascade tree attention on a CPU: PyTorch's flash op on squares and rectangles of rows.

Every (query, key) pair of the tree lies in exactly one call:

  squares     a node's rows with themselves, causal. Nodes of similar length share one call: their rows are
              gathered and padded at the tail, which causality hides from every real query.
  rectangles  an internal node's strict descendants (a contiguous run of queries) on the node's keys: views.

The parts of a row are merged by log-sum-exp. The backward runs each call again with the *merged* out and
log-sum-exp: its probabilities are then those of the whole row, so the calls' gradients simply add.

Short internal nodes would make many tiny rectangles. They are *replicated* instead: put as leading rows in
the square of each descendant. Each row's query counts in the one square that owns it. Elsewhere its output
is dropped and its incoming gradient is zero, so that it adds exact zeros to every gradient but its key's own.

Dimension key: S packed tree positions, B squares in a call, L rows in each of them, F = B * L rows of a call,
O rows that a call owns, Q query rows of a rectangle, H query heads, K key/value heads, E head width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import Tensor

from g2rpo_kernels.tree_attention.cascade.nodes import Nodes

REPLICATED_ROWS = 16
"""An internal node of at most this many rows is replicated,"""
REPLICATED_PATH = 64
"""as long as its path replicates at most this many rows in all."""
PADDED_SHARE = 0.75
"""Squares share a call with the longest one down to this share of its length."""

# Both take fewer key heads than query heads since torch 2.9 (pytorch#157893).
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


Span = tuple[int, int]
"""Stream rows [start, stop)."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """The rows of one square, in order: copies of replicated nodes' rows, then those that it owns."""

    copies: tuple[Span, ...]
    owned: Span
    num_copies: int
    num_rows: int
    """Copies included."""

    @staticmethod
    def of(copies: tuple[Span, ...], owned: Span) -> Piece:
        num_copies = sum(stop - start for start, stop in copies)
        num_rows = num_copies + owned[1] - owned[0]
        return Piece(copies=copies, owned=owned, num_copies=num_copies, num_rows=num_rows)

    def spans(self) -> Iterator[tuple[int, int]]:
        """Of each span its place in the square, and the stream row that it begins with."""
        place = 0
        for start, stop in (*self.copies, self.owned):
            yield place, start
            place += stop - start


@dataclass(frozen=True, kw_only=True)
class Squares:
    """One causal call over B squares of L rows."""

    shape: tuple[int, int]
    """(B, L)"""
    span: slice | None
    """The call's rows in the stream where they are one contiguous run and all owned: views, no gather."""
    row_F: Tensor
    """Stream row of each row of the call; tail padding repeats a square's last row."""
    owned_O: Tensor
    """Rows of the call whose output counts, as indices into F ..."""
    target_O: Tensor
    """... and the stream rows that they are. Each stream row is the target of one row of one call."""
    live_F11: Tensor
    """1 where a row of the call is owned, else 0."""


@dataclass(frozen=True, kw_only=True)
class CpuPlan:
    """Calls that cover each (query, key) pair of S rows once."""

    squares: tuple[Squares, ...]
    rectangles: tuple[tuple[slice, slice], ...]
    """(query rows, key rows) of each."""


def plan_cpu(nodes: Nodes) -> CpuPlan:
    """The calls for a forest: host work, once for all layers and both directions."""
    replicated = _replicated(nodes)
    pieces = sorted(_pieces(nodes, replicated), key=lambda piece: -piece.num_rows)
    buckets: list[list[Piece]] = []
    for piece in pieces:
        if buckets and piece.num_rows >= PADDED_SHARE * buckets[-1][0].num_rows:
            buckets[-1].append(piece)
        else:
            buckets.append([piece])
    rectangles = tuple(
        (slice(stop, end), slice(start, stop))
        for start, stop, end, copied in zip(
            nodes.start_N.tolist(), nodes.stop_N.tolist(), nodes.end_N.tolist(), replicated
        )
        if end > stop and not copied
    )
    return CpuPlan(squares=tuple(_squares(bucket) for bucket in buckets), rectangles=rectangles)


def _replicated(nodes: Nodes) -> list[bool]:
    """Which nodes are replicated into their descendants' squares."""
    replicated: list[bool] = []
    path_rows: list[int] = []
    for length, internal, parent in zip(
        nodes.length_N.tolist(), nodes.internal_N.tolist(), nodes.parent_N.tolist()
    ):
        above = path_rows[parent] if parent >= 0 else 0
        short = internal and length <= REPLICATED_ROWS and above + length <= REPLICATED_PATH
        replicated.append(short)
        path_rows.append(above + length if short else above)
    return replicated


def _pieces(nodes: Nodes, replicated: list[bool]) -> list[Piece]:
    """The squares, one by one.

    A replicated node has no square: its rows are owned by its first child's, where they lead anyway. So a
    square owns the rows of a maximal run of replicated nodes and of the node that follows them.
    """
    starts, stops = nodes.start_N.tolist(), nodes.stop_N.tolist()
    lead: list[tuple[Span, ...]] = []  # replicated rows above each node
    pieces: list[Piece] = []
    head = 0
    for node_id, parent in enumerate(nodes.parent_N.tolist()):
        above = lead[parent] if parent >= 0 else ()
        copied = parent >= 0 and replicated[parent]
        lead.append((*above, (starts[parent], stops[parent])) if copied else above)
        if not replicated[node_id]:
            pieces.append(Piece.of(lead[head], (starts[head], stops[node_id])))
            head = node_id + 1
    return pieces


def _squares(bucket: list[Piece]) -> Squares:
    bucket = sorted(bucket, key=lambda piece: piece.owned[1])
    length = max(piece.num_rows for piece in bucket)
    place_L = torch.arange(length)
    row_BL = torch.empty(len(bucket), length, dtype=torch.int64)
    for spans in zip_longest(*(piece.spans() for piece in bucket), fillvalue=(length, 0)):
        first_B1, row_B1 = (torch.tensor(of)[:, None] for of in zip(*spans))
        row_BL = torch.where(place_L >= first_B1, place_L + (row_B1 - first_B1), row_BL)
    row_BL = row_BL.minimum(torch.tensor([piece.owned[1] - 1 for piece in bucket])[:, None])
    first_B1, stop_B1 = (
        torch.tensor(of)[:, None] for of in zip(*((piece.num_copies, piece.num_rows) for piece in bucket))
    )
    live_BL = (place_L >= first_B1) & (place_L < stop_B1)
    row_F, live_F = row_BL.flatten(), live_BL.flatten()
    contiguous = bool(live_F.all() and (row_F.diff() == 1).all())
    return Squares(
        shape=(len(bucket), length),
        span=slice(int(row_F[0]), int(row_F[-1]) + 1) if contiguous else None,
        row_F=row_F,
        owned_O=live_F.nonzero()[:, 0],
        target_O=row_F[live_F],
        live_F11=live_F[:, None, None],
    )


def forward_cpu(
    q_SHE: Tensor, k_SKE: Tensor, v_SKE: Tensor, scale: float, plan: CpuPlan
) -> tuple[Tensor, Tensor]:
    """out [S, H, E] and its log-sum-exp [S, H] (nats), both in at least float32."""
    dtype = torch.promote_types(q_SHE.dtype, torch.float32)
    out_SHE = torch.empty(q_SHE.shape, dtype=dtype)
    lse_SH = torch.empty(q_SHE.shape[:2], dtype=dtype)
    for squares in plan.squares:
        q, k, v = (_take(x, squares) for x in (q_SHE, k_SKE, v_SKE))
        out_BHLE, lse_BHL = _flash(q, k, v, 0.0, True, scale=scale)
        _put(out_SHE, out_BHLE.transpose(1, 2), squares)
        _put(lse_SH, lse_BHL.transpose(1, 2), squares)
    for query, key in plan.rectangles:
        q, k, v = _heads(q_SHE[query]), _heads(k_SKE[key]), _heads(v_SKE[key])
        part_1HQE, part_lse_1HQ = _flash(q, k, v, 0.0, False, scale=scale)
        part_QHE, part_lse_QH = part_1HQE[0].transpose(0, 1), part_lse_1HQ[0].T
        lse_QH = lse_SH[query]
        out_SHE[query].lerp_(part_QHE.to(dtype), torch.sigmoid(part_lse_QH - lse_QH)[..., None])
        lse_QH.copy_(torch.logaddexp(lse_QH, part_lse_QH))
    return out_SHE, lse_SH


def backward_cpu(
    grad_SHE: Tensor,
    q_SHE: Tensor,
    k_SKE: Tensor,
    v_SKE: Tensor,
    out_SHE: Tensor,
    lse_SH: Tensor,
    scale: float,
    plan: CpuPlan,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, in at least float32, from the merged out (in q's dtype) and log-sum-exp."""
    dtype = lse_SH.dtype
    dq_SHE, dk_SKE, dv_SKE = (torch.zeros(x.shape, dtype=dtype) for x in (q_SHE, k_SKE, v_SKE))
    for squares in plan.squares:
        grad, q, k, v, out = (_take(x, squares) for x in (grad_SHE, q_SHE, k_SKE, v_SKE, out_SHE))
        lse = _take(lse_SH[..., None], squares)[..., 0]
        if squares.span is None:
            grad = grad * squares.live_F11.view(*squares.shape, 1, 1).transpose(1, 2)
        parts = _flash_backward(grad, q, k, v, out, lse, 0.0, True, scale=scale)
        for total, part in zip((dq_SHE, dk_SKE, dv_SKE), parts):
            _add(total, part.transpose(1, 2), squares)
    for query, key in plan.rectangles:
        grad, q, out = (_heads(x[query]) for x in (grad_SHE, q_SHE, out_SHE))
        k, v, lse = _heads(k_SKE[key]), _heads(v_SKE[key]), lse_SH[query].T[None]
        parts = _flash_backward(grad, q, k, v, out, lse, 0.0, False, scale=scale)
        for total, part in zip((dq_SHE[query], dk_SKE[key], dv_SKE[key]), parts):
            total += part[0].transpose(0, 1)
    return dq_SHE, dk_SKE, dv_SKE


def _heads(x_SHE: Tensor) -> Tensor:
    """[S, H, E] as the flash op's [1, H, S, E]."""
    return x_SHE.transpose(0, 1)[None]


def _take(x_SHE: Tensor, squares: Squares) -> Tensor:
    """The call's rows of `x_SHE`, as [B, H, L, E]."""
    rows = x_SHE[squares.span] if squares.span else x_SHE.index_select(0, squares.row_F)
    return rows.unflatten(0, squares.shape).transpose(1, 2)


def _put(x_S: Tensor, part_BL: Tensor, squares: Squares) -> None:
    """Write what a call owns of `part_BL` ([B, L, ...]) to its rows of `x_S` ([S, ...])."""
    part_F = part_BL.flatten(0, 1)
    if squares.span:
        x_S[squares.span] = part_F
    else:
        x_S.index_copy_(0, squares.target_O, part_F.index_select(0, squares.owned_O).to(x_S.dtype))


def _add(x_S: Tensor, part_BL: Tensor, squares: Squares) -> None:
    """Add all of a call's rows of `part_BL` to `x_S`, in a fixed order."""
    part_F = part_BL.flatten(0, 1).to(x_S.dtype)
    if squares.span:
        x_S[squares.span] += part_F
    else:
        x_S.index_add_(0, squares.row_F, part_F)
