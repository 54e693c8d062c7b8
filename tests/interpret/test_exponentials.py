"""The linear policy loss from exponentials, as on Hopper, interpreted: the error budget, launches, chunks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from g2rpo_kernels import Edges, Objective, linear_policy_loss, policy_loss
from g2rpo_kernels.linear_logprob import triton_exponentials
from g2rpo_kernels.linear_logprob.linear import checked_linear
from g2rpo_kernels.linear_logprob.triton_exponentials import (
    BLOCK_V,
    ExponentialRows,
    takes_exponentials,
)
from torch import Tensor

from budget import assert_within_budget, draws
from drawn import normal
from launched import kernel_names

S, D, T = 10, 40, 26
NAMES = ["loss", "logp", "entropy", "hidden", "head"]
SILENT = slice(10, 13)
"""Edges without a coefficient."""
OBJECTIVES = {
    "clip": Objective(),
    "penalties": Objective(kl_coef=0.1, entropy_coef=0.03),
}
A_CHUNK = ["exponential_kernel", "target_logit_kernel", "tile_policy_kernel"]


@pytest.fixture(autouse=True)
def _any_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_exponentials, "LEAST_COLUMNS", 1)


def problem(vocab: int, scale: float, shift: float, temperature: float) -> tuple[Tensor, ...]:
    """(hidden, head, target, source) in numbers that float16 has; a constant column shifts all logits."""
    generator = torch.Generator().manual_seed(0)
    hidden, head = (0.3 * scale * normal(S, D, seed=1)).half(), (0.3 * normal(vocab, D, seed=2)).half()
    hidden[:, 0], head[:, 0] = shift, 1.0
    target, source = (torch.randint(n, (T,), generator=generator) for n in (vocab, S))
    return hidden.double(), head.double(), target, source


def edges_of(logp_T: Tensor) -> Edges:
    advantage, weight = normal(T, seed=3), torch.full((T,), 1 / T, dtype=torch.float64)
    weight[SILENT] = 0
    # Ratios of 0.9 to 1.1 or outside 0.75 to 1.25: rounding moves none over a bound.
    apart = torch.where(torch.arange(T) % 3 == 0, 0.4, 0.1) * (
        2 * torch.rand(T, dtype=torch.float64).round() - 1
    )
    return Edges(
        weight * advantage.clamp(min=0), weight * advantage.clamp(max=0), weight, logp_T - apart, logp_T + 0.2
    )


def run(
    given: tuple[Tensor, ...],
    edges: Edges,
    objective: Objective,
    dtype: torch.dtype,
    plain: bool,
    **options: Any,
) -> tuple[Tensor, ...]:
    hidden, head = (value.detach().to(dtype).requires_grad_() for value in given[:2])
    target, source = given[2:]
    if plain:
        out = policy_loss(hidden[source] @ head.T, target, edges, objective, impl="reference", **options)
    else:
        options = {"source_T": source, "chunk_bytes": 10 * len(head) * 3} | options
        out = linear_policy_loss(hidden, head, target, edges, objective, impl="triton", **options)
    grads = torch.autograd.grad(3 * out.loss, (hidden, head))
    return out.loss.detach(), out.logp_T, out.entropy_T, *grads


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(
    ("vocab", "scale", "shift", "temperature"),
    [(600, 1.0, 0.0, 1.0), (300, 12.0, 0.0, 0.7), (BLOCK_V, 1.0, -50.0, 1.0), (BLOCK_V + 1, 3.0, 50.0, 1.3)],
)
def test_loss_from_exponentials_keeps_the_budget(
    vocab: int, scale: float, shift: float, temperature: float, objective: str
) -> None:
    """Vocabularies that fill their last tile, that do not, and that have one column in it; sharp rows."""
    given, o = problem(vocab, scale, shift, temperature), OBJECTIVES[objective]
    exact = policy_loss(
        given[0][given[3]] @ given[1].T,
        given[2],
        edges_of(torch.zeros(T)),
        o,
        impl="reference",
        temperature=temperature,
    )
    edges = edges_of(exact.logp_T.double())

    def result(dtype: torch.dtype, plain: bool) -> tuple[Tensor, ...]:
        return run(given, edges, o, dtype, plain, temperature=temperature)

    truth, got = result(torch.float64, True), result(torch.float16, False)
    assert_within_budget(
        got, draws(lambda: result(torch.float16, True)), truth, terms=0.5, dtype=torch.float16
    )
    assert all(torch.equal(a, b) for a, b in zip(got, result(torch.float16, False), strict=True))
    largest = float((given[0] @ given[1].T).abs().max()) / temperature
    for value, true in zip(got[1:3], truth[1:3], strict=True):  # float32's digits, whatever the operands'
        torch.testing.assert_close(value.double(), true, rtol=1e-6, atol=8 * 2.0**-24 * largest)


def test_confident_rows_keep_the_digits_of_their_log_probability() -> None:
    """1 - p of 1e-3 to 1e-9: the target's own term is in no sum."""
    distance = torch.tensor([7.0, 10.0, 14.0, 20.0])
    hidden, head = torch.zeros(4, 8), torch.zeros(600, 8)
    hidden[:, 0], head[345, 0] = distance, 1.0
    target, ones = torch.full((4,), 345), torch.ones(4)
    out = linear_policy_loss(
        hidden.half(), head.half(), target, Edges(ones, 0 * ones, ones), Objective(), impl="triton"
    )
    true = -torch.log1p(599 * torch.exp(-distance.double()))
    torch.testing.assert_close(out.logp_T.double(), true, rtol=1e-6, atol=0)


def test_a_chunk_takes_three_launches_and_silent_rows_get_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    given, edges = problem(600, 1.0, 0.0, 1.0), edges_of(torch.zeros(T))._replace(old_logp_T=None)
    names = kernel_names(monkeypatch)
    seen: list[Tensor] = []
    dlogits = ExponentialRows.dlogits

    def kept(self: ExponentialRows, chunk: slice) -> Tensor:
        seen.append(dlogits(self, chunk))
        return seen[-1]

    run(given, edges, Objective(), torch.float16, False)
    chunks, rest = divmod(len(names) - names.count("times_kernel"), len(A_CHUNK))
    assert rest == 0
    assert chunks == 2  # 26 rows, at most 14 at once
    assert names[: chunks * len(A_CHUNK)] == A_CHUNK * chunks
    monkeypatch.setattr(ExponentialRows, "dlogits", kept)
    run(given, edges, Objective(), torch.float16, False, chunk_bytes=1 << 20)
    assert len(seen) == 1
    assert not seen[0][SILENT].any()
    assert seen[0][: SILENT.start].any(1).all()


def test_what_has_more_done_to_its_logits_goes_the_other_way() -> None:
    hidden, head, target = (
        torch.zeros(4, 16).half(),
        torch.zeros(50, 16).half(),
        torch.zeros(4, dtype=torch.int64),
    )

    def taken(
        hidden: Tensor = hidden, head: Tensor = head, softcap: float | None = None, bias: Tensor | None = None
    ) -> bool:
        return takes_exponentials(checked_linear(hidden, head, target, None, bias, 1.0, softcap, None))

    assert taken()
    assert not taken(softcap=30.0)
    assert not taken(bias=torch.zeros(50))
    assert not taken(hidden=hidden.float(), head=head.float())
    assert not taken(hidden=hidden[:, :12], head=head[:, :12])


def test_a_head_that_the_copy_engine_refuses_is_copied() -> None:
    given = problem(300, 1.0, 0.0, 1.0)
    edges = edges_of(torch.full((T,), -6.0))
    wanted = run(given, edges, Objective(), torch.float16, False)
    wide = torch.zeros(300, D + 1, dtype=torch.float16)
    wide[:, 1:] = given[1]
    hidden, head = given[0].half().requires_grad_(), wide[:, 1:].detach().requires_grad_()
    out = linear_policy_loss(
        hidden, head, given[2], edges, Objective(), source_T=given[3], impl="triton", chunk_bytes=10 * 300 * 3
    )
    assert torch.equal(out.logp_T, wanted[1])
    assert all(
        torch.equal(a, b)
        for a, b in zip(torch.autograd.grad(3 * out.loss, (hidden, head)), wanted[3:], strict=True)
    )
