"""Packed trees to test attention on, and the error a kernel may make.

Dimension key: S packed tree positions, H query heads, K key/value heads, E head width.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from g2rpo_kernels.tree_attention import tree_attention
from g2rpo_kernels.tree_attention.reference import visible
from g2rpo_kernels.tree_attention.tile_lists.records import TileLists
from torch import Tensor

from budget import draws, excess

QKV = tuple[Tensor, Tensor, Tensor]


def forest(seed: int, *, trees: int = 2, depth: int = 6, lengths: tuple[int, ...] = (1, 2, 7, 33)) -> Tensor:
    """END of random trees: up to `depth` levels, up to three children a node."""
    rng = random.Random(seed)
    end: list[int] = []

    def grow(level: int) -> None:
        start = len(end)
        length = rng.choice(lengths)
        end.extend([0] * length)
        if level < depth:
            for _ in range(rng.choice((0, 1, 2, 2, 3)) if level > 1 else 3):
                grow(level + 1)
        end[start : start + length] = [len(end)] * length

    for _ in range(trees):
        grow(1)
    return torch.tensor(end, dtype=torch.int32)


def path_lengths(end_S: Tensor) -> Tensor:
    row_S = torch.arange(len(end_S))
    return ((row_S[None] < row_S[:, None]) & (row_S[:, None] < end_S[None])).sum(1)


def tensors_of(lists: TileLists) -> list[Tensor]:
    """Spelt out: torch 2.11 does not trace `vars`."""
    queries = [x for part in (lists.forward, lists.query_grad) for x in (part.work_P4, part.key_L)]
    return [*queries, lists.kv_grad.work_I5, lists.kv_grad.query_L, lists.kv_grad.slot_N2]


def qkv(size: int, heads: int, kv_heads: int, width: int = 8, dtype: torch.dtype = torch.float64) -> QKV:
    g = torch.Generator().manual_seed(size + heads)
    shapes = [(size, heads, width), (size, kv_heads, width), (size, kv_heads, width)]
    q, k, v = (torch.randn(s, generator=g, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes)
    return q, k, v


def copies(inputs: QKV, dtype: torch.dtype) -> QKV:
    q, k, v = (x.detach().to(dtype, copy=True).requires_grad_() for x in inputs)
    return q, k, v


def out_and_grads(inputs: QKV, end_S: Tensor, **kwargs) -> list[Tensor]:
    return with_grads(inputs, lambda q, k, v: tree_attention(q, k, v, end_S, scale=0.4, **kwargs))


def with_grads(inputs: QKV, attention: Callable[..., Tensor]) -> list[Tensor]:
    inputs = copies(inputs, inputs[0].dtype)
    out_SHE = attention(*inputs)
    grads = torch.autograd.grad(out_SHE, inputs, incoming(out_SHE))
    return [out_SHE.detach(), *grads]


def incoming(out_SHE: Tensor) -> Tensor:
    """A fixed gradient for `out_SHE`."""
    return torch.linspace(-40, 40, out_SHE.numel(), dtype=torch.float64).sin().view(out_SHE.shape).to(out_SHE)


def textbook(
    inputs: QKV,
    end_S: Tensor,
    *,
    position_S: Tensor | None = None,
    window: int | None = None,
    softcap: float | None = None,
) -> tuple[list[Tensor], list[float]]:
    """out, dq, dk, dv by the equations of `triton.backward`, eagerly, in at least float32, for `incoming`.

    And what each is rounded against: its greatest value; for dq and dk, which are differences of products,
    the greatest sum of the magnitudes of what is added and subtracted.
    """
    q_SHE, k_SKE, v_SKE = (x.detach() for x in inputs)
    dtype = torch.promote_types(q_SHE.dtype, torch.float32)
    group = q_SHE.shape[1] // k_SKE.shape[1]
    q, k, v = (x.to(dtype) for x in (q_SHE, *(y.repeat_interleave(group, 1) for y in (k_SKE, v_SKE))))
    hidden_SS = ~visible(end_S, position_S, window)

    def scores() -> tuple[Tensor, Tensor]:
        """And their slope under the softcap."""
        score_HSS = torch.einsum("ihe,jhe->hij", q, k) * 0.4
        slope_HSS = torch.ones_like(score_HSS)
        if softcap is not None:
            tanh_HSS = torch.tanh(score_HSS / softcap)
            score_HSS, slope_HSS = softcap * tanh_HSS, 1 - tanh_HSS**2
        return score_HSS.masked_fill(hidden_SS, float("-inf")), slope_HSS

    score_HSS, _ = scores()
    lse_HS1 = score_HSS.logsumexp(-1, keepdim=True)
    out_SHE = torch.einsum("hij,jhe->ihe", score_HSS.softmax(-1), v).to(q_SHE.dtype)
    grad = incoming(out_SHE).to(dtype)
    delta_HS1 = (grad * out_SHE.to(dtype)).sum(-1).T[..., None]
    score_HSS, slope_HSS = scores()  # again: the backward has tiles, and so roundings, of its own
    weight_HSS = (score_HSS - lse_HS1).exp()
    dp_HSS = torch.einsum("ihe,jhe->hij", grad, v)

    def of_scores(ds_HSS: Tensor, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        ds_HSS = weight_HSS * ds_HSS * slope_HSS * 0.4
        dk = torch.einsum("hij,ihe->jhe", ds_HSS, q).unflatten(1, (-1, group)).sum(2)
        return torch.einsum("hij,jhe->ihe", ds_HSS, k), dk

    dv = torch.einsum("hij,ihe->jhe", weight_HSS, grad).unflatten(1, (-1, group)).sum(2)
    results = [out_SHE, *of_scores(dp_HSS - delta_HS1, q, k), dv]
    delta_HS1 = (grad * out_SHE.to(dtype)).abs().sum(-1).T[..., None]
    dp_HSS = torch.einsum("ihe,jhe->hij", grad.abs(), v.abs())
    terms = [out_SHE, *of_scores(dp_HSS + delta_HS1, q.abs(), k.abs()), dv]
    return [x.to(q_SHE.dtype) for x in results], [float(x.abs().max()) for x in terms]


def worst_excess(inputs: QKV, end_S: Tensor, attention: Callable[..., Tensor], **options: Any) -> float:
    """The greatest `excess` of out, dq, dk and dv of `attention(q, k, v)` under the reference's `options`.

    Eager is `textbook`: autograd through softmax has no delta, whose rounding is that of dout . v and not of
    the small difference of the two.
    """
    exact = out_and_grads(copies(inputs, torch.float64), end_S, impl="reference", **options)
    eagers = draws(lambda: textbook(inputs, end_S, **options)[0])
    _, sizes = textbook(inputs, end_S, **options)
    got = with_grads(inputs, attention)
    assert [x.dtype for x in got] == [x.dtype for x in eagers[0]]
    return max(map(excess, got, zip(*eagers, strict=True), exact, sizes))
