"""The linear ops with the vocabulary split over ranks: real processes, gloo, equal to the op on one rank."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from g2rpo_kernels import (
    Edges,
    Objective,
    edge_coefficients,
    linear_logprob,
    linear_policy_loss,
    token_loss,
)
from g2rpo_kernels.linear_logprob import VocabShard
from g2rpo_kernels.logprob.checks import Impl
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from budget import Tolerance, draws, error
from drawn import normal
from interpreting import patched_once

S, D, V, T = 7, 6, 101, 24
EPS = Tolerance(rtol=1e-10, atol=1e-12)
Results = tuple[Tensor, ...]


def columns_of(rank: int, ranks: int) -> slice:
    """Uneven shards: the last is smaller."""
    width = -(-V // ranks)
    return slice(rank * width, min((rank + 1) * width, V))


def edges() -> Edges:
    """Six rows of four edges."""
    advantage, weight = normal(T, seed=4), torch.full((T,), 0.3, dtype=torch.float64)
    weight[5] = 0
    each = torch.arange(T + 1)
    old, ref, rollout = (-4.6 + 0.3 * normal(T, seed=seed) for seed in (5, 6, 7))
    coefficients = edge_coefficients(advantage, weight, each)
    return Edges(*coefficients, old, ref, rollout, each, torch.arange(T) // 4, advantage, weight, 6)


def run(
    impl: Impl,
    dtype: torch.dtype,
    objective: Objective | None,
    shard: VocabShard | None,
    columns: slice,
    options: dict,
) -> Results:
    """Values and gradients of (hidden, head, bias); `objective` None = linear_logprob."""
    leaves = [
        value.float().to(dtype).requires_grad_()
        for value in (normal(S, D, seed=0), normal(V, D, seed=1)[columns], normal(V, seed=2)[columns])
    ]
    target = torch.randint(V, (T,), generator=torch.Generator().manual_seed(3))
    source = torch.randint(S, (T,), generator=torch.Generator().manual_seed(8))
    hidden, head, bias = leaves
    more = {"source_T": source, "bias_V": bias, "shard": shard, "impl": impl, **options}
    if objective is None:
        out = linear_logprob(hidden, head, target, **more)
        weights = normal(3, T, seed=9).to(dtype)
        values, scalar = tuple(out), sum(((w * x).sum() for w, x in zip(weights, out)), hidden.new_zeros(()))
    else:
        loss = linear_policy_loss(hidden, head, target, edges(), objective, **more)
        values, scalar = (loss.loss, loss.logp_T, loss.entropy_T), 3 * loss.loss
    return *(value.detach() for value in values), *torch.autograd.grad(scalar, leaves)


OBJECTIVES = [
    None,
    Objective(kl_coef=0.1, entropy_coef=0.03, importance_cap=1.1),
    Objective(ratio="sequence", kl_coef=0.1),
    Objective(ratio="sequence", entropy_coef=0.1),
]
OPTIONS = [{}, {"softcap": 5.0, "temperature": 0.7, "chunk_bytes": 4000}]


def local(whole: Results, columns: slice) -> Results:
    return *whole[:4], whole[4][columns], whole[5][columns]


def check_float64(rank: int, group: dist.ProcessGroup) -> None:
    columns = columns_of(rank, group.size())
    shard = VocabShard(group=group, start=columns.start, size=V)
    for objective in OBJECTIVES:
        for options in OPTIONS:
            whole = run("reference", torch.float64, objective, None, slice(None), options)
            assert all(value.abs().max() > 1e-3 for value in whole)
            got = run("cpu", torch.float64, objective, shard, columns, options)
            for value, true in zip(got, local(whole, columns), strict=True):
                torch.testing.assert_close(value, true, **EPS)


def check_interpreted(rank: int, group: dist.ProcessGroup) -> None:
    """Of each result: twice the worst relative error of float32 eager in any case and draw, one rounding."""
    columns = columns_of(rank, group.size())
    shard = VocabShard(group=group, start=columns.start, size=V)
    terms = edges().a_pos_T.sum() - edges().a_neg_T.sum()  # what the loss sums, of both signs
    got_errors, eager_errors = [], []
    for objective, options in itertools.product(OBJECTIVES, OPTIONS):
        arguments = (objective, None, slice(None), options)
        true = local(run("reference", torch.float64, *arguments), columns)
        eagers = draws(lambda: local(run("reference", torch.float32, *arguments), columns))  # noqa: B023
        got = run("triton", torch.float32, objective, shard, columns, options)
        sizes = [float(value.abs().max() if value.dim() else terms) for value in true]
        for errors, sides in ((got_errors, [got]), (eager_errors, eagers)):
            errors += [[error(v, t) / s for v, t, s in zip(x, true, sizes, strict=True)] for x in sides]
    got_worst, eager_worst = torch.tensor(got_errors).amax(0), torch.tensor(eager_errors).amax(0)
    assert (got_worst <= 2 * eager_worst + torch.finfo(torch.float32).eps).all(), (got_worst, eager_worst)


def check_token_loss(rank: int, group: dist.ProcessGroup) -> None:
    """A loss of one's own, tied by rows of four, that learns a number: the same on every rank."""
    columns = columns_of(rank, group.size())
    shard = VocabShard(group=group, start=columns.start, size=V)
    source = torch.randint(S, (T,), generator=torch.Generator().manual_seed(8))

    def run(dtype: torch.dtype, columns: slice, **options: Any) -> Results:
        given = (normal(S, D, seed=0), normal(V, D, seed=1)[columns], torch.tensor(1.5))
        hidden, head, learnt = leaves = [x.to(dtype).requires_grad_() for x in given]

        def loss(logp_T: Tensor, entropy_T: Tensor) -> Tensor:
            mean_B = (learnt * logp_T + entropy_T).view(-1, 4).mean(1)
            return ((mean_B / 9).tanh() * normal(T // 4, seed=3).to(dtype)).sum()

        options |= {"source_T": source, "ties": "row", "row_cuts": range(4, T + 1, 4)}
        out = token_loss(hidden, head, torch.arange(T), loss, **options)
        return out.loss.detach(), *torch.autograd.grad(3 * out.loss, leaves)

    whole = run(torch.float64, slice(None), impl="reference")
    for impl, dtype, eps in (("cpu", torch.float64, 1e-10), ("triton", torch.float32, 1e-5)):
        for chunk_bytes in (None, 4000):
            got = run(dtype, columns, impl=impl, shard=shard, chunk_bytes=chunk_bytes)
            for value, true in zip(got, (*whole[:2], whole[2][columns], whole[3]), strict=True):
                assert true.abs().max() > 1e-3
                torch.testing.assert_close(value.double(), true, rtol=eps, atol=eps)


def check_ranks_without_possible_tokens(rank: int, group: dist.ProcessGroup) -> None:
    """Padding: all of the last rank's logits are -inf."""
    columns = columns_of(rank, group.size())
    shard = VocabShard(group=group, start=columns.start, size=V)
    head, bias, hidden = normal(V, D, seed=1), normal(V, seed=2), normal(3, D, seed=0)
    bias[columns_of(group.size() - 1, group.size())] = -torch.inf
    target = torch.tensor([0, 3, 7])
    whole = linear_logprob(hidden, head, target, bias_V=bias, impl="reference")
    sides: list[tuple[Impl, torch.dtype, float]] = [
        ("cpu", torch.float64, 1e-12),
        ("triton", torch.float32, 1e-5),
    ]
    for impl, dtype, eps in sides:
        given = (hidden.to(dtype), head[columns].to(dtype), target)
        got = linear_logprob(*given, bias_V=bias[columns].to(dtype), shard=shard, impl=impl)
        for value, true in zip(got, whole, strict=True):
            torch.testing.assert_close(value.double(), true, rtol=0, atol=eps)


def check_same_bits_on_every_rank(rank: int, group: dist.ProcessGroup) -> None:
    columns = columns_of(rank, group.size())
    shard = VocabShard(group=group, start=columns.start, size=V)
    got = run("cpu", torch.float32, Objective(kl_coef=0.1), shard, columns, {})
    for value in got[:4]:
        others = [torch.empty_like(value) for _ in range(group.size())]
        dist.all_gather(others, value.contiguous(), group)
        assert all(torch.equal(value, other) for other in others)


def check_compiles(rank: int, group: dist.ProcessGroup) -> None:
    """One graph with the collectives inside, where the group goes by its name."""
    columns = columns_of(rank, group.size())
    shard = VocabShard(group=group, start=columns.start, size=V)
    given, target, some = edges(), torch.arange(T), torch.arange(T) % S

    def loss(hidden: Tensor, head: Tensor) -> Tensor:
        more = {"source_T": some, "shard": shard, "impl": "cpu"}
        logp_T, entropy_T, _ = linear_logprob(hidden.tanh(), head, target, **more)
        out = linear_policy_loss(hidden.tanh(), head, target, given, Objective(kl_coef=0.1), **more)
        return 3 * out.loss + (logp_T - 0.1 * entropy_T).sum()

    results = []
    for function in (loss, torch.compile(loss, backend="aot_eager", fullgraph=True)):
        leaves = normal(S, D, seed=0).requires_grad_(), normal(V, D, seed=1)[columns].requires_grad_()
        results.append(torch.autograd.grad(function(*leaves), leaves))
    for eager, compiled in zip(*results, strict=True):
        assert eager.abs().max() > 0.1
        torch.testing.assert_close(compiled, eager, **EPS)


def worker(rank: int, ranks: int, meet: Path, checks: list[Callable[[int, dist.ProcessGroup], None]]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=ranks)
    group = dist.group.WORLD
    assert group is not None
    with patched_once():
        for check in checks:
            check(rank, group)
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [pytest.param(2, marks=pytest.mark.deep), 3])
def test_sharded_vocabulary_equals_one_rank(
    ranks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # of the ranks, which import triton themselves
    checks = [
        check_float64,
        check_interpreted,
        check_token_loss,
        check_ranks_without_possible_tokens,
        check_same_bits_on_every_rank,
        check_compiles,
    ]
    assert "TRITON_INTERPRET" in os.environ
    spawn(worker, (ranks, tmp_path / "meet", checks), nprocs=ranks)


class OneRank:
    """A group of two as far as validation reads it."""

    def size(self) -> int:
        return 2


@pytest.mark.parametrize(
    ("start", "size", "impl", "message"),
    [
        (60, 101, None, r"shard: wanted start in \[0, 50\], got 60 \(51 of 101 tokens\)"),
        (0, 101, "reference", "impl='reference': wanted shard=None"),
    ],
)
def test_a_shard_that_does_not_fit_is_refused(start: int, size: int, impl: Impl | None, message: str) -> None:
    shard = VocabShard(group=OneRank(), start=start, size=size)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=message):
        linear_logprob(torch.zeros(2, D), torch.zeros(51, D), torch.tensor([0, 100]), shard=shard, impl=impl)
