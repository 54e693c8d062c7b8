"""Sequence ratios in chunks of whole rows: where edges may be cut, and how many products that saves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from g2rpo_kernels import Edges, Objective, linear_logprob, linear_policy_loss
from g2rpo_kernels.linear_policy_loss.bins import row_cuts, whole_row_runs
from torch import Tensor

from products import Work

T, V, D = 24, 13, 5
SAPO = Objective(ratio="sequence", surrogate="sapo")  # clips nothing: no row is left out


def edges_of_rows(row_M: list[int], counts: list[int], **more: Any) -> Edges:
    """Edges with `counts` members each, whose rows are `row_M`."""
    generator = torch.Generator().manual_seed(1)
    num_members = len(row_M)
    ptr = torch.tensor([0, *counts]).cumsum(0)
    advantage = torch.randn(num_members, generator=generator, dtype=torch.float64)
    weight = torch.full((num_members,), 0.1, dtype=torch.float64)
    per_edge = [torch.randn(len(counts), generator=generator, dtype=torch.float64) for _ in range(3)]
    return Edges(
        per_edge[0].abs(), -per_edge[1].abs(), per_edge[2].abs(), -2.5 + 0.1 * per_edge[2],
        member_ptr_T1=ptr, member_row_M=torch.tensor(row_M), member_advantage_M=advantage,
        member_weight_M=weight, num_rows=max(row_M, default=-1) + 1, **more,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("row_M", "counts", "cuts"),
    [
        ([0, 0, 1, 1, 1], [1] * 5, (2, 5)),
        ([0, 1, 0, 2], [1] * 4, (3, 4)),  # row 1 lies inside row 0
        ([0, 1, 0, 1, 2], [2, 1, 1, 1], (3, 4)),  # a trunk of two rows, then a row alone
        ([0, 3], [1, 0, 0, 1], (1, 2, 3, 4)),  # edges without members; rows without edges
        ([], [], ()),
    ],
)
def test_cuts_leave_every_row_whole(row_M: list[int], counts: list[int], cuts: tuple[int, ...]) -> None:
    assert row_cuts(edges_of_rows(row_M, counts)) == cuts


def test_runs_are_as_long_as_they_may_be() -> None:
    assert whole_row_runs((2, 5, 6, 16, 18), 6) == [slice(0, 6), slice(6, 16), slice(16, 18)]
    assert whole_row_runs((4,), 9) == [slice(0, 4)]
    assert whole_row_runs((), 9) == []


def loss_and_gradients(edges: Edges, objective: Objective, **options: Any) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(2)
    hidden, head = (torch.randn(n, D, generator=generator, dtype=torch.float64) for n in (T, V))
    leaves = hidden.requires_grad_(), head.requires_grad_()
    loss = linear_policy_loss(*leaves, torch.arange(T) % V, edges, objective, **options).loss
    return loss.detach(), *torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize(
    ("rows_of_a_chunk", "row_length", "number"),
    [(24, 6, 3.0), (6, 6, 3.0), (13, 6, 3.0), (5, 6, 4.0), (9, 12, 4.0)],
)
@pytest.mark.parametrize("entropy_coef", [0.0, 0.1])
def test_whole_rows_in_a_chunk_save_a_product(
    rows_of_a_chunk: int, row_length: int, number: float, entropy_coef: float
) -> None:
    edges = edges_of_rows([t // row_length for t in range(T)], [1] * T)
    objective = replace(SAPO, entropy_coef=entropy_coef)
    want = loss_and_gradients(edges, objective, impl="reference")
    with Work() as work:
        got = loss_and_gradients(edges, objective, impl="cpu", chunk_bytes=rows_of_a_chunk * V * 8)
    assert work.products == number * T * V * D
    assert want[2].abs().max() > 1e-3
    for value, true in zip(got, want, strict=True):
        torch.testing.assert_close(value, true, rtol=1e-10, atol=1e-12)


def test_cuts_given_by_the_caller_are_used() -> None:
    edges = edges_of_rows([t // 6 for t in range(T)], [1] * T, row_cuts=(12, 24))
    with Work() as work:
        loss_and_gradients(edges, SAPO, impl="cpu", chunk_bytes=6 * V * 8)
    assert work.products == 4 * T * V * D


def test_autocast_does_not_reach_the_products() -> None:
    hidden, head = torch.randn(T, D, requires_grad=True), torch.randn(V, D, requires_grad=True)
    target, edges = torch.arange(T) % V, edges_of_rows(list(range(T)), [1] * T)

    def run() -> tuple[Tensor, ...]:
        loss = linear_policy_loss(hidden, head, target, edges, Objective()).loss
        logp_T = linear_logprob(hidden, head, target).logp_T
        return loss, logp_T, *torch.autograd.grad(loss, (hidden, head))

    want = run()
    with torch.autocast("cpu", torch.bfloat16):
        got = run()
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
