"""Cascade tree attention on CUDA: PyTorch's varlen flash op, one call per depth of the tree.

Every (query, key) pair of the tree lies in exactly one call: one causal call over all nodes as sequences,
then for each depth one non-causal call in which an internal node's rows are the keys of a sequence and its
strict descendants are its queries. No sequence is empty on either side: the op's log-sum-exp of no keys
differs between versions. Parts are merged by log-sum-exp; the backward runs each call again with the merged
out and log-sum-exp.

The ops are called by keyword because releases append arguments (torch 2.11 to 2.14 differ). Their log-sum-exp
is [H, rows], natural, float32.

Dimension key: S packed tree positions, Q query rows and C key rows of one depth, N1 sequences of a call plus
one, H query heads, K key/value heads, E head width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from g2rpo_kernels.transfer import to_device
from g2rpo_kernels.tree_attention.cascade.nodes import Nodes

_flash = torch.ops.aten._flash_attention_forward.default
_flash_backward = torch.ops.aten._flash_attention_backward.default


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """Where a call's sequences begin (int32, plus the total), and the longest."""

    begin_N1: Tensor
    longest: int


@dataclass(frozen=True, kw_only=True)
class Depth:
    """The non-causal call of one depth."""

    query_Q: Tensor
    """Stream rows of the queries; distinct."""
    key_C: Tensor
    """Stream rows of the keys; distinct."""
    query: Sequences
    key: Sequences


@dataclass(frozen=True, kw_only=True)
class CudaPlan:
    """Calls that cover each (query, key) pair of S rows once."""

    nodes: Sequences
    depths: tuple[Depth, ...]


def plan_cuda(nodes: Nodes, device: torch.device) -> CudaPlan:
    """The calls for a forest, their index tensors on `device`."""
    internal_N = nodes.internal_N
    depths = []
    for depth in nodes.depth_N[internal_N].unique():
        at = internal_N & (nodes.depth_N == depth)
        start, stop, end = nodes.start_N[at], nodes.stop_N[at], nodes.end_N[at]
        depths.append(
            Depth(
                query_Q=_ranges(stop, end),
                key_C=_ranges(start, stop),
                query=_sequences(end - stop),
                key=_sequences(stop - start),
            )
        )
    return _sent(CudaPlan(nodes=_sequences(nodes.length_N), depths=tuple(depths)), device)


def _sent(plan: CudaPlan, device: torch.device) -> CudaPlan:
    """The plan with its tensors on `device`, in one copy."""
    held = [plan.nodes.begin_N1]
    for depth in plan.depths:
        held += [depth.query_Q, depth.key_C, depth.query.begin_N1, depth.key.begin_N1]
    nodes, *rest = to_device(held, device)
    depths = [
        Depth(
            query_Q=query_Q,
            key_C=key_C,
            query=replace(depth.query, begin_N1=query_begin),
            key=replace(depth.key, begin_N1=key_begin),
        )
        for depth, query_Q, key_C, query_begin, key_begin in zip(plan.depths, *(rest[i::4] for i in range(4)))
    ]
    return CudaPlan(nodes=replace(plan.nodes, begin_N1=nodes), depths=tuple(depths))


def _ranges(start: Tensor, stop: Tensor) -> Tensor:
    return torch.cat([torch.arange(a, b) for a, b in zip(start.tolist(), stop.tolist())])


def _sequences(length: Tensor) -> Sequences:
    begin = torch.cat([length.new_zeros(1), length.cumsum(0)]).to(torch.int32)
    # At least 2: with a longest query of 1 and grouped heads the op swaps heads and rows to save work, and
    # the log-sum-exp comes back in another layout. The value is only an upper bound.
    return Sequences(begin_N1=begin, longest=max(2, *length.tolist()))


def forward_cuda(
    q_SHE: Tensor, k_SKE: Tensor, v_SKE: Tensor, scale: float, plan: CudaPlan
) -> tuple[Tensor, Tensor]:
    """out [S, H, E] and its log-sum-exp [S, H] (nats), both float32."""
    part, part_lse = _call(q_SHE, k_SKE, v_SKE, plan.nodes, plan.nodes, scale, causal=True)
    out_SHE, lse_SH = part.float(), part_lse.T.contiguous()
    for depth in plan.depths:
        q_QHE = q_SHE.index_select(0, depth.query_Q)
        k_CKE, v_CKE = (x.index_select(0, depth.key_C) for x in (k_SKE, v_SKE))
        part_QHE, part_lse_HQ = _call(q_QHE, k_CKE, v_CKE, depth.query, depth.key, scale, causal=False)
        lse_QH, part_lse_QH = lse_SH.index_select(0, depth.query_Q), part_lse_HQ.T
        out_QHE = out_SHE.index_select(0, depth.query_Q)
        out_QHE.lerp_(part_QHE.float(), torch.sigmoid(part_lse_QH - lse_QH)[..., None])
        out_SHE.index_copy_(0, depth.query_Q, out_QHE)
        lse_SH.index_copy_(0, depth.query_Q, torch.logaddexp(lse_QH, part_lse_QH))
    return out_SHE, lse_SH


def backward_cuda(
    grad_SHE: Tensor,
    q_SHE: Tensor,
    k_SKE: Tensor,
    v_SKE: Tensor,
    out_SHE: Tensor,
    lse_SH: Tensor,
    scale: float,
    plan: CudaPlan,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k, v in float32, from the merged out (in q's dtype) and log-sum-exp. Deterministic."""
    parts = _call_backward(
        grad_SHE, q_SHE, k_SKE, v_SKE, out_SHE, lse_SH, plan.nodes, plan.nodes, scale, causal=True
    )
    dq_SHE, dk_SKE, dv_SKE = (part.float() for part in parts)
    for depth in plan.depths:
        grad, q, out, lse = (x.index_select(0, depth.query_Q) for x in (grad_SHE, q_SHE, out_SHE, lse_SH))
        k, v = (x.index_select(0, depth.key_C) for x in (k_SKE, v_SKE))
        parts = _call_backward(grad, q, k, v, out, lse, depth.query, depth.key, scale, causal=False)
        totals = (dq_SHE, dk_SKE, dv_SKE)
        for total, part, rows in zip(totals, parts, (depth.query_Q, depth.key_C, depth.key_C)):
            total.index_add_(0, rows, part.float())  # distinct rows: one addition each, so no order to fix
    return dq_SHE, dk_SKE, dv_SKE


def _call(
    q: Tensor, k: Tensor, v: Tensor, query: Sequences, key: Sequences, scale: float, causal: bool
) -> tuple[Tensor, Tensor]:
    out, lse, *_ = _flash(
        query=q.contiguous(),
        key=k.contiguous(),
        value=v.contiguous(),
        cum_seq_q=query.begin_N1,
        cum_seq_k=key.begin_N1,
        max_q=query.longest,
        max_k=key.longest,
        dropout_p=0.0,
        is_causal=causal,
        return_debug_mask=False,
        scale=scale,
    )
    return out, lse


def _call_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    query: Sequences,
    key: Sequences,
    scale: float,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    with _deterministic():
        return _flash_backward(
            grad_out=grad.contiguous(),
            query=q.contiguous(),
            key=k.contiguous(),
            value=v.contiguous(),
            out=out.contiguous(),
            logsumexp=lse.T.contiguous(),
            cum_seq_q=query.begin_N1,
            cum_seq_k=key.begin_N1,
            max_q=query.longest,
            max_k=key.longest,
            dropout_p=0.0,
            is_causal=causal,
            rng_state=torch.zeros(2, dtype=torch.uint64, device=q.device),
            unused=torch.empty(0, device=q.device),
            scale=scale,
        )


@contextmanager
def _deterministic() -> Iterator[None]:
    """The backward op sums dq in a fixed order only under this (process-wide) switch: set, then put back."""
    was, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was, warn_only=warn_only)
