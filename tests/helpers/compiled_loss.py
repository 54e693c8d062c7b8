"""A backbone and a linear op, compiled and not: for the tests of the CPU paths and of the interpreter."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from g2rpo_kernels import Edges, Objective, linear_logprob, linear_policy_loss
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from drawn import normal

D, V = 6, 37
EPS: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12}
TOKEN = [
    Objective(kl_coef=0.1, entropy_coef=0.03, importance_cap=1.5, importance_mask=True),
    Objective(surrogate="cispo"),
]
SEQUENCE = [
    Objective(ratio="sequence", kl_coef=0.1),
    Objective(ratio="product", surrogate="vespo"),
]


def edges_of(num_edges: int) -> Edges:
    """Rows of three edges and a rest; float64, which the ops cast."""
    advantage, weight = normal(num_edges, seed=4), torch.full((num_edges,), 0.3, dtype=torch.float64)
    each, rows = torch.arange(num_edges + 1), torch.arange(num_edges) // 3
    old, ref, rollout = (-3.6 + 0.3 * normal(num_edges, seed=seed) for seed in (5, 6, 7))
    coefficients = weight * advantage.clamp(min=0), weight * advantage.clamp(max=0), weight
    return Edges(*coefficients, old, ref, rollout, each, rows, advantage, weight, num_edges // 3 + 1)


def inputs_of(num_edges: int, objective: Objective | None, dtype: torch.dtype) -> tuple[Any, ...]:
    """Fewer positions than edges, as in a tree."""
    generator = torch.Generator().manual_seed(num_edges)
    target = torch.randint(V, (num_edges,), generator=generator)
    source = torch.randint(num_edges - 2, (num_edges,), generator=generator)
    leaves = (normal(num_edges - 2, D, seed=1), normal(D, D, seed=2), normal(V, D, seed=3), normal(V, seed=8))
    leaves = tuple(leaf.to(dtype).requires_grad_() for leaf in leaves)
    return *leaves, target, source, edges_of(num_edges), objective


def backbone_and_loss(
    x: Tensor, w: Tensor, head: Tensor, bias: Tensor, target: Tensor, source: Tensor, edges: Edges,
    objective: Objective | None, **options: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    hidden = torch.tanh(x @ w)
    given = {"source_T": source, "bias_V": bias, "temperature": 0.9, "softcap": 20.0, **options}
    if objective is None:  # linear_logprob
        logp, entropy, lse = linear_logprob(hidden, head, target, **given)
        return (logp * edges.weight_T - 0.3 * entropy + 0.1 * lse).sum(), logp.detach(), entropy.detach()
    out = linear_policy_loss(hidden, head, target, edges, objective, **given)
    return 3 * out.loss, out.logp_T, out.entropy_T, *(value for pair in out.stats.values() for value in pair)


def run(function: Callable[..., tuple[Tensor, ...]], given: tuple[Any, ...]) -> list[Tensor]:
    loss, *seen = function(*given)
    return [loss.detach(), *seen, *torch.autograd.grad(loss, given[:4])]


def check_one_graph(
    objective: Objective | None,
    dtype: torch.dtype = torch.float64,
    lengths: tuple[int, ...] = (11, 17, 5),
    **options: Any,
) -> None:
    """Same loss, metrics and gradients as eager; compiled for the first length, and once more for any."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    loss = partial(backbone_and_loss, **options)
    compiled = torch.compile(loss, backend=counter, fullgraph=True)
    for num_edges in lengths:
        given = inputs_of(num_edges, objective, dtype)
        want, got = (run(function, given) for function in (loss, compiled))
        for value, true in zip(got, want, strict=True):
            torch.testing.assert_close(value, true, **(EPS if dtype == torch.float64 else {}))
        assert all(gradient.abs().max() > 1e-6 for gradient in want[-4:])
    assert counter.frame_count == 2
