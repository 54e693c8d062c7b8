"""The linear ops on a GPU: bfloat16 within the error budget, the same bits twice, no waiting, bounded memory.

Error budget: see `budget`.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from g2rpo_kernels import Edges, Objective, linear_logprob, linear_policy_loss, policy_loss
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
    old, ref = (logp + 0.2 * torch.randn(T, generator=generator).double() for _ in range(2))
    members = (torch.arange(T + 1), torch.arange(T) // 10, advantage, weight, T // 10)
    edges = Edges(
        weight * advantage.clamp(min=0), weight * advantage.clamp(max=0), weight, old, ref, None, *members
    )._replace(row_cuts=tuple(range(10, T + 1, 10)))
    leaves = [value.to(dtype).requires_grad_() for value in (hidden, head, bias)]
    return leaves, target, source, edges.cast(torch.float64, torch.device("cuda"))


def run(dtype: torch.dtype, objective: Objective, plain: bool, **options: Any) -> tuple[Tensor, ...]:
    (hidden, head, bias), target, source, edges = problem(dtype)
    if plain:
        out = policy_loss(hidden[source] @ head.T + bias, target, edges, objective, impl="reference")
    else:
        out = linear_policy_loss(
            hidden, head, target, edges, objective, source_T=source, bias_V=bias, **options
        )
    grads = torch.autograd.grad(3 * out.loss, (hidden, head, bias))
    return out.loss.detach(), out.logp_T, out.entropy_T, *grads


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: f"{o.ratio}-{o.entropy_coef}")
def test_gpu_losses_keep_the_budget_and_repeat_bit_for_bit(objective: Objective, dtype: torch.dtype) -> None:
    eagers = draws(lambda: run(dtype, objective, plain=True))
    truth = run(torch.float64, objective, plain=True)
    for chunk_bytes in (None, 200 * 6 * V):
        got, again = (run(dtype, objective, plain=False, chunk_bytes=chunk_bytes) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))
        assert_within_budget(got, eagers, truth, terms=0.5, dtype=dtype)


def test_gpu_step_does_not_wait_for_the_device() -> None:
    for objective in OBJECTIVES:
        (hidden, head, bias), target, source, edges = problem(torch.bfloat16)
        options = {"source_T": source, "bias_V": bias}
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
