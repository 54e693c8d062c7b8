"""The error budget itself: float32 in any order keeps it, what loses a tile or digits does not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from g2rpo_kernels import logprob
from g2rpo_kernels.tree_attention.reference import visible
from torch import Tensor

from budget import RandomOrder, assert_within_budget, draws, error, excess
from logit_rows import rows
from trees import QKV, forest, qkv, worst_excess

NEAR, FAR = 1.0, 2.0
"""Bounds of the excess of what is right, and of what is wrong."""


def lse_of_tiles(
    logits_TV: Tensor, size: int, dtype: torch.dtype = torch.float32, drop: int | None = None
) -> Tensor:
    """The log of the sum of exponentials, tile after tile as a kernel takes them, in `dtype`."""
    top_T, sum_T = torch.full((len(logits_TV),), -torch.inf), torch.zeros(len(logits_TV))
    for tile, part_TV in enumerate(logits_TV.split(size, 1)):
        if tile != drop:
            new_T = torch.maximum(top_T, part_TV.amax(1))
            part_T = (part_TV - new_T[:, None]).exp().sum(1)
            sum_T, top_T = (sum_T * (top_T - new_T).exp() + part_T).to(dtype).float(), new_T
    return top_T + sum_T.log()


def excess_of_lse(kind: str, vocab: int, **flaw: object) -> float:
    logits, target = rows(kind, 16, vocab)

    def eager() -> list[Tensor]:
        return [logprob(logits, target, impl="reference").lse_T]

    truth = logprob(logits.double(), target, impl="reference").lse_T
    got = lse_of_tiles(logits, 64, **flaw)  # pyright: ignore[reportArgumentType]
    return excess(got, [same for (same,) in draws(eager)], truth)


@pytest.mark.parametrize("vocab", [65, 509, 4093])
@pytest.mark.parametrize("kind", ["plain", "up", "down", "confident", "equal"])
def test_rows_in_tiles_keep_the_budget_unless_a_tile_or_digits_are_lost(kind: str, vocab: int) -> None:
    assert excess_of_lse(kind, vocab) <= NEAR
    assert excess_of_lse(kind, vocab, drop=vocab // 64) > FAR
    if kind in ("plain", "up", "down"):  # float16 holds the others' sums
        assert excess_of_lse(kind, vocab, dtype=torch.float16) > FAR


def attention_of(
    end_S: Tensor, order_S: Tensor | None = None, weights: torch.dtype = torch.float32, drop: int = 0
) -> Callable[..., Tensor]:
    """Tree attention with its keys in another order, `weights` of few digits, or without the first keys."""
    seen_SS = visible(end_S, None, None)
    order_S = torch.arange(len(end_S)) if order_S is None else order_S

    def attention(q_SHE: Tensor, k_SKE: Tensor, v_SKE: Tensor) -> Tensor:
        k_SKE, v_SKE = k_SKE[order_S], v_SKE[order_S]
        score_HSS = torch.einsum("ihe,jhe->hij", q_SHE, k_SKE) * 0.4
        seen = seen_SS[:, order_S].clone()
        seen[drop:, :drop] = False
        weight_HSS = score_HSS.masked_fill(~seen, -torch.inf).softmax(-1)
        return torch.einsum("hij,jhe->ihe", weight_HSS.to(weights).to(v_SKE.dtype), v_SKE)

    return attention


def problem(kind: str, seed: int) -> tuple[QKV, Tensor]:
    end_S = forest(seed, trees=1, depth=3, lengths=(1, 7, 12))
    q, k, v = qkv(len(end_S), 2, 2, 16, torch.float32)
    shift = {"plain": 0.0, "up": 50.0, "down": -50.0}[kind]
    return (q, (k.detach() * (20 if shift else 1) + shift).requires_grad_(), v), end_S


@pytest.mark.parametrize("seed", range(22, 27))
@pytest.mark.parametrize("kind", ["plain", "up", "down"])
def test_attention_keeps_the_budget_unless_keys_or_digits_are_lost(kind: str, seed: int) -> None:
    inputs, end_S = problem(kind, seed)
    order_S = torch.randperm(len(end_S), generator=torch.Generator().manual_seed(seed))
    assert worst_excess(inputs, end_S, attention_of(end_S, order_S)) <= NEAR
    if kind == "plain":  # elsewhere one key has all of the weight, which float16 holds
        assert worst_excess(inputs, end_S, attention_of(end_S, weights=torch.float16)) > FAR
        assert worst_excess(inputs, end_S, attention_of(end_S, drop=8)) > FAR


def test_a_product_into_a_buffer_is_drawn_into_it() -> None:
    left, right = torch.randn(2, 9, 9, generator=torch.Generator().manual_seed(0))
    out = torch.full((9, 9), torch.nan)
    with RandomOrder(0):
        assert torch.mm(left, right, out=out) is out
    torch.testing.assert_close(out, left @ right)


def test_draws_are_of_the_same_numbers_with_other_roundings() -> None:
    """Products, sums and what is made of them; float64 is as it was."""
    left, right = torch.randn(2, 40, 40, generator=torch.Generator().manual_seed(0))

    def run(dtype: torch.dtype) -> list[Tensor]:
        leaf = left.to(dtype).requires_grad_()
        out = (leaf @ right.to(dtype)).log_softmax(-1)
        return [out.detach(), *torch.autograd.grad(out.tanh().sum(), leaf)]

    exact = run(torch.float64)
    with RandomOrder(0):
        assert all(torch.equal(a, b) for a, b in zip(exact, run(torch.float64), strict=True))
    for same, true in zip(zip(*draws(lambda: run(torch.float32)), strict=True), exact, strict=True):
        errors = [error(x, true) / float(true.abs().max()) for x in same]
        assert len(set(errors)) == 4
        assert 1e-9 < min(errors) <= max(errors) < 2e-6


def test_what_is_zero_or_not_finite_is_never_within_a_budget() -> None:
    zero, one = torch.zeros(2), torch.ones(2)
    assert_within_budget([zero], [[zero]], [zero.double()])
    for got, truth in ((one, zero), (zero, one), (torch.full((2,), torch.nan), one)):
        with pytest.raises(AssertionError):
            assert_within_budget([got], [[truth]], [truth.double()])
