"""Row kernels on a GPU: the float64 budget in every dtype, bit-for-bit repeats, nothing waits."""

from __future__ import annotations

import pytest
import torch
from g2rpo_kernels import (
    Edges,
    Objective,
    Rewards,
    edge_coefficients,
    group_advantage,
    logprob,
    policy_loss,
    policy_loss_from_rewards,
)
from g2rpo_kernels.group_advantage import Scale
from g2rpo_kernels.logprob.checks import Impl
from torch import Tensor

from budget import assert_within_budget, draws
from logit_rows import rows

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def logprob_with_gradient(
    logits: Tensor, target: Tensor, scaling: tuple[float, float | None], impl: Impl, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    leaf = logits.to(dtype, copy=True).requires_grad_()
    out = logprob(leaf, target, temperature=scaling[0], softcap=scaling[1], impl=impl)
    return *(x.detach() for x in out), *torch.autograd.grad(weighted_on_device(out), leaf)


def weighted_on_device(out: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(3, len(out[0]), generator=generator, dtype=torch.float64).to(out[0].device)
    return sum(((w.to(x) * x).sum() for w, x in zip(weights, out, strict=True)), out[2].new_zeros(()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scaling", [(1.0, None), (0.7, None), (1.3, 30.0)])
@pytest.mark.parametrize("kind", ["plain", "up", "down", "confident", "equal", "impossible"])
def test_logprob_within_budget(kind: str, scaling: tuple[float, float | None], dtype: torch.dtype) -> None:
    for vocab in (17, 2048, 50_257, 151_936):
        logits, target = (x.cuda() for x in rows(kind, 33, vocab))
        given = (logits.to(dtype), target, scaling)
        eagers = draws(lambda: logprob_with_gradient(*given, "reference", dtype))  # noqa: B023
        truth = logprob_with_gradient(*given, "reference", torch.float64)
        assert_within_budget(logprob_with_gradient(*given, "triton", dtype), eagers, truth)


def loss_case(num_rows: int, vocab: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Edges]:
    generator = torch.Generator().manual_seed(1)
    logits = (3 * torch.randn(num_rows, vocab, generator=generator)).to(dtype)
    target = torch.randint(vocab, (num_rows,), generator=generator)
    logp = torch.log_softmax(logits.double(), -1).gather(1, target[:, None])[:, 0]
    old, ref, rollout = ((logp + 0.3 * torch.randn(num_rows, generator=generator)).float() for _ in range(3))
    weight, advantage = torch.rand(num_rows, generator=generator), torch.randn(num_rows, generator=generator)
    weight[::5] = 0
    edges = Edges(weight * advantage.clamp(min=0), weight * advantage.clamp(max=0), weight, old, ref, rollout)
    on_gpu = edges.cast(torch.float32, torch.device("cuda"))
    return logits.cuda(), target.cuda(), on_gpu


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("surrogate", ["clip", "cispo", "sapo", "reinforce"])
def test_policy_loss_within_budget_and_repeats_bit_for_bit(surrogate: str, dtype: torch.dtype) -> None:
    logits, target, edges = loss_case(64, 32_003, dtype)
    masked = surrogate in ("cispo", "sapo")
    o = Objective(
        surrogate=surrogate, kl_coef=0.1, entropy_coef=0.02, importance_cap=1.2, importance_mask=masked
    )

    def run(impl: Impl, working: torch.dtype, overwrite: bool = False) -> tuple[Tensor, Tensor]:
        leaf = logits.to(working, copy=True).requires_grad_()
        out = policy_loss(leaf, target, edges, o, overwrite_logits=overwrite, impl=impl)
        return out.loss.detach(), torch.autograd.grad(out.loss, leaf)[0].clone()

    eagers, truth = draws(lambda: run("reference", dtype)), run("reference", torch.float64)
    for overwrite in (False, True):
        got, again = (run("triton", dtype, overwrite) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))
        assert_within_budget(got, eagers, truth)


def test_nothing_waits_for_the_device() -> None:
    logits, target, edges = loss_case(16, 5000, torch.bfloat16)
    o = Objective(kl_coef=0.1, entropy_coef=0.02, importance_cap=1.2)
    reward, group = torch.rand(8, 2, device="cuda"), torch.arange(8, device="cuda") // 4
    row = torch.arange(16, device="cuda") // 2
    given = Rewards(reward_RK=reward, group_R=group, row_T=row, scale="batch")
    ptr = torch.arange(17, device="cuda")

    def step() -> Tensor:
        leaf = logits.clone().requires_grad_()
        loss = policy_loss(leaf, target, edges, o).loss + logprob(leaf, target).entropy_T.sum()
        loss = loss + policy_loss_from_rewards(leaf * 1, target, given, edges.weight_T, Objective()).loss
        loss.backward()
        advantage = group_advantage(reward, group)
        edge_coefficients(advantage[row].float(), edges.weight_T, ptr)
        assert leaf.grad is not None
        return leaf.grad

    step()  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        gradient = step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("scale", ["group", "none", "batch"])
def test_loss_from_rewards_equals_reference(scale: Scale) -> None:
    logits, target, edges = loss_case(48, 9001, torch.float32)
    generator = torch.Generator().manual_seed(2)
    given = Rewards(
        reward_RK=torch.rand(300, 2, generator=generator).cuda(),
        group_R=torch.randint(40, (300,), generator=generator).cuda(),
        row_T=torch.randint(300, (48,), generator=generator).cuda(),
        scale=scale,
    )
    results = []
    sides: list[tuple[Impl, torch.dtype]] = [("triton", torch.float32), ("reference", torch.float64)]
    for impl, dtype in sides:
        leaf = logits.to(dtype, copy=True).requires_grad_()
        loss = policy_loss_from_rewards(leaf, target, given, edges.weight_T, Objective(), impl=impl).loss
        results.append((loss.detach().double(), torch.autograd.grad(loss, leaf)[0].double()))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    assert results[1][1].abs().max() > 0.1
