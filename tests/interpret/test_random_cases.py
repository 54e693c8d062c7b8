"""Random cases of each op in float32 and in float16, `deep` a hundred of each: values and every gradient.

`logprob`, `policy_loss` with token ratios, and tree attention have theirs beside their other tests. The
budget (style rule 26) holds for the worst error of all cases of an op, see `Errors`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from g2rpo_kernels import (
    Edges,
    Objective,
    Vespo,
    edge_coefficients,
    group_advantage,
    linear_logprob,
    linear_policy_loss,
    logprob,
    policy_loss,
)
from g2rpo_kernels.policy_loss import Rewards, policy_loss_from_rewards
from torch import Tensor

from budget import draws
from logit_rows import weighted
from random_policies import Errors, moved, random_case, random_objective

COUNTS = [50, pytest.param(100, marks=pytest.mark.deep)]
DTYPES = [torch.float32, torch.float16]
SCALINGS = [(1.0, None), (0.8, None), (1.1, 20.0)]
LINEAR_GRADIENTS = ("gradient of hidden", "gradient of head", "gradient of bias")


class Pick:
    """The choices of one case."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def number(self, low: int, high: int) -> int:
        """In [low, high)."""
        return int(torch.randint(low, high, (), generator=self.generator))

    def one(self, *values: Any) -> Any:
        return values[self.number(0, len(values))]

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def objective(self, *ratios: str) -> Objective:
        o = replace(random_objective(self.generator), ratio=self.one(*ratios))
        return replace(o, surrogate=Vespo()) if o.ratio == "product" else o


def picks(count: int) -> Iterator[Pick]:
    return map(Pick, range(count))


class LinearCase:
    """Hidden states of a few positions, some of which predict several of the targets."""

    def __init__(self, pick: Pick) -> None:
        self.pick = pick
        vocab = pick.number(2050, 2100) if pick.number(0, 12) == 0 else pick.number(2, 90)
        size, width, self.num_rows = pick.number(1, 6), pick.number(1, 12), pick.number(3, 6)
        scaling: dict[str, Any] = dict(zip(("temperature", "softcap"), pick.one(*SCALINGS), strict=True))
        values = 0.7 * pick.normal(size, width), pick.normal(vocab, width), 0.5 * pick.normal(vocab)
        self.values = [value.half() for value in values]
        self.shift = pick.one(0, 0, 50, -50)
        self.values[2] += self.shift
        self.target = torch.randint(vocab, (self.num_rows,), generator=pick.generator)
        self.source = torch.randint(size, (self.num_rows,), generator=pick.generator)
        chunk_bytes = pick.one(None, 4 * vocab * 2 * pick.number(1, 6))
        self.fused = {"source_T": self.source, "chunk_bytes": chunk_bytes, "impl": "triton"} | scaling
        self.plain: dict[str, Any] = {"impl": "reference"} | scaling

    def leaves(self, dtype: torch.dtype) -> list[Tensor]:
        return [value.to(dtype).requires_grad_() for value in self.values]

    def logits(self, leaves: list[Tensor]) -> Tensor:
        hidden, head, bias = leaves
        return hidden[self.source] @ head.T + bias

    def edges(self) -> Edges:
        """Of members in any order or row by row, near the true log-probabilities; a third on-policy."""
        pick, edges = self.pick, random_case(self.pick.number(0, 1 << 30), self.num_rows, 5).edges
        logits = self.logits([value.double() for value in self.values])
        logp = logprob(logits, self.target, **self.plain).logp_T
        old, ref, rollout = (logp + 0.4 * pick.normal(self.num_rows) for _ in range(3))
        edges = edges._replace(old_logp_T=pick.one(old, old, None), ref_logp_T=ref, rollout_logp_T=rollout)
        if pick.number(0, 2):
            assert edges.member_ptr_T1 is not None
            owner = torch.repeat_interleave(edges.member_ptr_T1.diff())
            edges = edges._replace(member_row_M=owner // 2, num_rows=-(-self.num_rows // 2))
        return edges

    def policy(self, dtype: torch.dtype, fused: bool, edges: Edges, o: Objective) -> list[Tensor]:
        leaves = hidden, head, bias = self.leaves(dtype)
        if fused:
            out = linear_policy_loss(hidden, head, self.target, edges, o, bias_V=bias, **self.fused)
        else:
            out = policy_loss(self.logits(leaves), self.target, edges, o, **self.plain)
        return [moved(out.loss, edges.weight_T), *torch.autograd.grad(3 * out.loss, leaves)]

    def logprob(self, dtype: torch.dtype, fused: bool) -> list[Tensor]:
        leaves = hidden, head, bias = self.leaves(dtype)
        if fused:
            out = linear_logprob(hidden, head, self.target, bias_V=bias, **self.fused)
        else:
            out = logprob(self.logits(leaves), self.target, **self.plain)
        return [*(x.detach() for x in out), *torch.autograd.grad(weighted(out), leaves)]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_policy_loss_within_budget_on_random_cases(dtype: torch.dtype, count: int) -> None:
    errors, seen = Errors(dtype), set()
    for pick in picks(count):
        case = LinearCase(pick)
        given = case.edges(), pick.objective("token", "token", "sequence", "product")
        names = [f"{name} {case.shift:+}" for name in ("loss", *LINEAR_GRADIENTS)]
        eagers = draws(lambda: case.policy(dtype, False, *given))  # noqa: B023
        truth = case.policy(torch.float64, False, *given)
        errors.add_all(names, case.policy(dtype, True, *given), eagers, truth)
        seen.add((type(given[1].surrogate), given[1].ratio))
    errors.check()
    assert len(seen) > 8


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_logprob_within_budget_on_random_cases(dtype: torch.dtype, count: int) -> None:
    errors = Errors(dtype)
    for pick in picks(count):
        case = LinearCase(pick)
        names = [f"{name} {case.shift:+}" for name in ("logp", "entropy", "lse", *LINEAR_GRADIENTS)]
        eagers = draws(lambda: case.logprob(dtype, False))  # noqa: B023
        errors.add_all(names, case.logprob(dtype, True), eagers, case.logprob(torch.float64, False))
    errors.check()


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_policy_loss_of_whole_rows_within_budget_on_random_cases(dtype: torch.dtype, count: int) -> None:
    errors = Errors(dtype)
    for seed, pick in enumerate(picks(count)):
        case = random_case(seed, pick.number(3, 5), pick.number(2, 400), pick.one(*SCALINGS))
        case = replace(case, logits=case.logits.to(dtype) + pick.one(0, 50, -50))
        errors.compare(case, pick.objective("sequence", "product"), overwrite=seed % 2 == 1)
    errors.check()


def random_rewards(pick: Pick, num_rollouts: int, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """Ragged groups with ids in any order, many of one rollout, and rewards that may all be equal."""
    shape = num_rollouts, pick.number(1, 3)
    reward_RK = pick.one(
        pick.normal(*shape),
        torch.randint(0, 2, shape, generator=pick.generator).double(),
        torch.full(shape, 0.1, dtype=torch.float64),
    )
    group_R = torch.randint(-3, pick.one(-1, 0, 30), shape[:1], generator=pick.generator) * 1_000_003
    weight_K = pick.one(None, pick.normal(shape[1]).abs())
    return {"reward_RK": reward_RK.to(dtype), "group_R": group_R, "channel_weight_K": weight_K}


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_group_advantage_equals_reference_on_random_cases(dtype: torch.dtype, count: int) -> None:
    sizes = []
    for pick in picks(count):
        given = random_rewards(pick, pick.number(1, 12), dtype) | {"eps": pick.one(1e-4, 1e-2)}
        given |= pick.one(
            {"scale": "group"}, {"scale": "batch"}, {"scale": "none"}, {"aggregation": "normalize_then_sum"}
        )
        got, want = (group_advantage(**given, impl=impl) for impl in ("triton", "reference"))
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)
        sizes.append(float(want.abs().max()))
    assert sum(size == 0 for size in sizes) > count / 20  # all equal, or groups of one alone
    assert sum(size > 0.1 for size in sizes) > count / 3


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_edge_coefficients_within_a_rounding_on_random_cases(dtype: torch.dtype, count: int) -> None:
    num_shared = num_empty = 0
    for pick in picks(count):
        counts = torch.randint(0, 5, (pick.number(1, 60),), generator=pick.generator)
        ptr = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
        advantage, weight = pick.normal(int(ptr[-1])).to(dtype), pick.normal(int(ptr[-1])).abs().to(dtype)
        got = edge_coefficients(advantage, weight, ptr, impl="triton")
        want = edge_coefficients(advantage.double(), weight.double(), ptr, impl="reference")
        for a, b in zip(got, want, strict=True):
            assert a.dtype == dtype
            least = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
            torch.testing.assert_close(a.double(), b, rtol=torch.finfo(dtype).eps, atol=least)
            assert (a[counts == 0] == 0).all()
        num_shared += int(((want[0] != 0) & (want[1] != 0)).sum())
        num_empty += int((counts == 0).sum())
    assert num_shared > 5 * count
    assert num_empty > 3 * count


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_loss_from_rewards_within_budget_on_random_cases(dtype: torch.dtype, count: int) -> None:
    errors = Errors(dtype)
    for seed, pick in enumerate(picks(count)):
        case = random_case(seed, pick.number(3, 5), pick.number(2, 400), (1.0, None))
        num_rollouts, weight_T = pick.number(1, 9), case.edges.weight_T
        row_T = torch.randint(num_rollouts, weight_T.shape, generator=pick.generator).sort().values
        given = random_rewards(pick, num_rollouts) | {"scale": pick.one("group", "batch", "none")}
        o, rewards = pick.objective("token", "token", "sequence"), Rewards(row_T=row_T, **given)
        fixed = (case.target, rewards, weight_T, o, *case.edges[3:6])
        logits, overwrite = case.logits.to(dtype), seed % 2 == 1

        def run(kind: torch.dtype, **options: Any) -> list[Tensor]:
            leaf = logits.to(kind, copy=True).requires_grad_()  # noqa: B023
            loss = loss_from_rewards(leaf, *fixed, **options)  # noqa: B023
            return [moved(loss, weight_T), torch.autograd.grad(3 * loss, leaf)[0]]  # noqa: B023

        got = run(dtype, overwrite_logits=overwrite, impl="triton")
        eagers = draws(lambda: run(dtype, impl="reference"))
        errors.add_all(("loss", "gradient"), got, eagers, run(torch.float64, impl="reference"))
    errors.check()


def loss_from_rewards(
    leaf: Tensor,
    target: Tensor,
    rewards: Rewards,
    weight_T: Tensor,
    o: Objective,
    old: Tensor | None,
    ref: Tensor | None,
    rollout: Tensor | None,
    **options: Any,
) -> Tensor:
    known = {"old_logp_T": old, "ref_logp_T": ref, "rollout_logp_T": rollout}
    return policy_loss_from_rewards(leaf, target, rewards, weight_T, o, **known, **options).loss
