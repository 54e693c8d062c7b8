"""The linear ops on a GPU: bfloat16 within the error budget, the same bits twice, no waiting, bounded memory.

Error budget: see `budget`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from g2rpo_kernels import Edges, Objective, linear_logprob, linear_policy_loss, policy_loss, token_loss
from g2rpo_kernels.token_loss import Ties
from torch import Tensor

from budget import assert_within_budget, draws

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
T, S, D, V = 700, 256, 128, 5003
OBJECTIVES = [
    Objective(),
    Objective(kl_coef=0.1, entropy_coef=0.03),
    Objective(ratio="sequence", kl_coef=0.1),
    Objective(ratio="sequence", entropy_coef=0.03),
]


def off_the_bounds(log_ratio_T: Tensor) -> Tensor:
    """Moved where rounding would decide whether the ratio is clipped: a step in the gradient, no error."""
    for bound in (math.log(0.8), math.log(1.2)):
        beyond_T = log_ratio_T - bound
        log_ratio_T = torch.where(beyond_T.abs() < 0.02, bound + 0.02 * beyond_T.sign(), log_ratio_T)
    return log_ratio_T


def problem(dtype: torch.dtype) -> tuple[list[Tensor], Tensor, Tensor, Edges]:
    """Leaves (hidden, head, bias), targets, sources with repeats, edges of 70 rows of 10."""
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(*shape, generator=generator) for shape in ((S, D), (V, D), (V,))]
    target = torch.randint(V, (T,), generator=generator).cuda()
    source = torch.randint(S, (T,), generator=generator).cuda()
    hidden, head, bias = (0.3 * value.bfloat16().double().cuda() for value in values)
    logp = ((hidden[source] @ head.T + bias).log_softmax(-1).gather(1, target[:, None])[:, 0]).cpu()
    advantage = torch.randn(T, generator=generator).double()
    weight = torch.full((T,), 1 / T, dtype=torch.float64)
    noise, other_noise = (0.2 * torch.randn(T, generator=generator).double() for _ in range(2))
    old, ref = logp - off_the_bounds(-noise), logp + other_noise
    members = (torch.arange(T + 1), torch.arange(T) // 10, advantage, weight, T // 10)
    edges = Edges(
        weight * advantage.clamp(min=0), weight * advantage.clamp(max=0), weight, old, ref, None, *members
    )._replace(row_cuts=tuple(range(10, T + 1, 10)))
    leaves = [value.to(dtype).requires_grad_() for value in (hidden, head, bias)]
    return leaves, target, source, edges.cast(torch.float64, torch.device("cuda"))


def run(
    dtype: torch.dtype, objective: Objective, plain: bool, biased: bool = True, **options: Any
) -> tuple[Tensor, ...]:
    """Without a bias Hopper keeps the logits of halves on the chip."""
    (hidden, head, bias), target, source, edges = problem(dtype)
    leaves = (hidden, head, bias) if biased else (hidden, head)
    if plain:
        logits = hidden[source] @ head.T + (bias if biased else 0)
        out = policy_loss(logits, target, edges, objective, impl="reference")
    else:
        given: dict[str, Any] = {"source_T": source, "bias_V": bias if biased else None}
        out = linear_policy_loss(hidden, head, target, edges, objective, **given, **options)
    grads = torch.autograd.grad(3 * out.loss, leaves)
    return out.loss.detach(), out.logp_T, out.entropy_T, *grads


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: f"{o.ratio}-{o.entropy_coef}")
@pytest.mark.parametrize("biased", [True, False], ids=["bias", "plain"])
def test_gpu_losses_keep_the_budget_and_repeat_bit_for_bit(
    biased: bool, objective: Objective, dtype: torch.dtype
) -> None:
    eagers = draws(lambda: run(dtype, objective, True, biased))
    truth = run(torch.float64, objective, True, biased)
    for chunk_bytes in (None, 200 * 6 * V):
        got, again = (run(dtype, objective, False, biased, chunk_bytes=chunk_bytes) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))
        assert_within_budget(got, eagers, truth, terms=0.5, dtype=dtype)


def test_gpu_step_does_not_wait_for_the_device() -> None:
    for objective in OBJECTIVES:
        (hidden, head, bias), target, source, edges = problem(torch.bfloat16)
        options: dict[str, Any] = {"source_T": source, "bias_V": bias}
        linear_policy_loss(hidden, head, target, edges, objective, **options).loss.backward()  # compiles
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            linear_policy_loss(hidden, head, target, edges, objective, **options).loss.backward()
            linear_logprob(hidden, head, target, **options).logp_T.sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert hidden.grad is not None
        assert hidden.grad.abs().max() > 0


def test_gpu_memory_is_bounded() -> None:
    """16,384 rows of 151,936 tokens: 1.5 GB beside d hidden and d head."""
    rows, width, vocab = 16_384, 64, 151_936
    hidden = torch.randn(rows, width, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    head = torch.randn(vocab, width, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    ones = torch.full((rows,), 1 / rows, device="cuda")
    target = torch.randint(vocab, (rows,), device="cuda")
    base = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    linear_policy_loss(hidden, head, target, Edges(ones, -ones, ones), Objective()).loss.backward()
    gradients = (rows + vocab) * width * (4 + 2)
    small = 40 * 8 * rows + (64 << 20)  # vectors, and the library's workspace
    assert torch.cuda.max_memory_allocated() - base <= 1.5e9 + gradients + small


def own_loss(ties: Ties, entropy: float, edges: Edges) -> Callable[[Tensor, Tensor], Tensor]:
    """Ratios to old log-probabilities, weighted by token, as means of rows of ten, or by a softmax of all."""
    old_T, weight_T = edges.old_logp_T, edges.a_pos_T + edges.a_neg_T
    assert old_T is not None

    def loss(logp_T: Tensor, entropy_T: Tensor) -> Tensor:
        log_ratio_T, weights_T = logp_T - old_T.to(logp_T), weight_T.to(logp_T)
        value = {
            "token": lambda: (log_ratio_T.exp() * weights_T).sum(),
            "row": lambda: (log_ratio_T.view(-1, 10).mean(1).exp() * weights_T[::10]).sum(),
            "batch": lambda: (torch.softmax(log_ratio_T, 0) * weights_T).sum(),
        }[ties]()
        return value - entropy * entropy_T.mean() if entropy else value

    return loss


def token_run(dtype: torch.dtype, ties: Ties, entropy: float, **options: Any) -> tuple[Tensor, ...]:
    (hidden, head, bias), target, source, edges = problem(dtype)
    options |= {"row_cuts": range(10, T + 1, 10)} if ties == "row" else {}
    out = token_loss(
        hidden,
        head,
        target,
        own_loss(ties, entropy, edges),
        ties=ties,
        source_T=source,
        bias_V=bias,
        **options,
    )
    return out.loss.detach(), *torch.autograd.grad(3 * out.loss, (hidden, head, bias))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("ties", ["token", "row", "batch"])
@pytest.mark.parametrize("entropy", [0.0, 0.03])
def test_gpu_token_loss_keeps_the_budget(ties: Ties, entropy: float, dtype: torch.dtype) -> None:
    eagers = draws(lambda: token_run(dtype, ties, entropy, impl="reference"))
    truth = token_run(torch.float64, ties, entropy)
    for chunk_bytes in (None, 200 * 6 * V):
        got = token_run(dtype, ties, entropy, chunk_bytes=chunk_bytes)
        assert_within_budget(got, eagers, truth, terms=0.5, dtype=dtype)


def test_gpu_token_loss_does_not_wait_and_is_nan_where_ties_are_too_narrow() -> None:
    (hidden, head, bias), target, source, edges = problem(torch.bfloat16)
    edges = edges.cast(torch.float32, torch.device("cuda"))
    pairs: list[tuple[Ties, Ties]] = [("token", "token"), ("batch", "batch"), ("token", "batch")]
    for ties, kind in pairs:
        own = own_loss(kind, 0.03, edges)
        given: dict[str, Any] = {"source_T": source, "bias_V": bias, "ties": ties}
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            loss = token_loss(hidden, head, target, own, chunk_bytes=200 * 6 * V, **given).loss
            (gradient,) = torch.autograd.grad(loss, head)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert bool(loss.isfinite()) == bool(gradient.isfinite().all()) == (ties == kind)
