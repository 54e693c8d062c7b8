"""The linear ops inside torch.compile: one graph, the same numbers, reused for other lengths (CPU paths)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from g2rpo_kernels import Edges, Objective, linear_logprob, linear_policy_loss
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

D, V = 6, 37
EPS = {"rtol": 1e-10, "atol": 1e-12}
OBJECTIVES = [
    Objective(kl_coef=0.1, entropy_coef=0.03, importance_cap=1.5, importance_mask=True),
    Objective(surrogate="cispo", dual_clip=3.0),
    Objective(ratio="sequence", kl_coef=0.1),
    Objective(ratio="product", surrogate="vespo"),
]


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def edges_of(num_edges: int) -> Edges:
    """Rows of three edges and a rest."""
    advantage, weight = normal(num_edges, seed=4), torch.full((num_edges,), 0.3, dtype=torch.float64)
    each, rows = torch.arange(num_edges + 1), torch.arange(num_edges) // 3
    old, ref, rollout = (-3.6 + 0.3 * normal(num_edges, seed=seed) for seed in (5, 6, 7))
    coefficients = weight * advantage.clamp(min=0), weight * advantage.clamp(max=0), weight
    return Edges(*coefficients, old, ref, rollout, each, rows, advantage, weight, num_edges // 3 + 1)


def inputs_of(num_edges: int, objective: Objective | None) -> tuple[Any, ...]:
    """Fewer positions than edges, as in a tree."""
    generator = torch.Generator().manual_seed(num_edges)
    target = torch.randint(V, (num_edges,), generator=generator)
    source = torch.randint(num_edges - 2, (num_edges,), generator=generator)
    leaves = (normal(num_edges - 2, D, seed=1), normal(D, D, seed=2), normal(V, D, seed=3), normal(V, seed=8))
    leaves = tuple(leaf.requires_grad_() for leaf in leaves)
    return *leaves, target, source, edges_of(num_edges), objective


def backbone_and_loss(
    x: Tensor, w: Tensor, head: Tensor, bias: Tensor, target: Tensor, source: Tensor, edges: Edges,
    objective: Objective | None, **options: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    hidden = torch.tanh(x @ w)
    given = {"source_T": source, "bias_V": bias, "temperature": 0.9, "softcap": 20.0, **options}
    if objective is None:
        logp, entropy, lse = linear_logprob(hidden, head, target, **given)
        return (logp * edges.weight_T - 0.3 * entropy + 0.1 * lse).sum(), logp.detach(), entropy.detach()
    out = linear_policy_loss(hidden, head, target, edges, objective, **given)
    return 3 * out.loss, out.logp_T, out.entropy_T, *(value for pair in out.stats.values() for value in pair)


def run(function: Callable[..., tuple[Tensor, ...]], given: tuple[Any, ...]) -> list[Tensor]:
    loss, *seen = function(*given)
    return [loss.detach(), *seen, *torch.autograd.grad(loss, given[:4])]


@pytest.mark.parametrize("objective", [None, *OBJECTIVES])
def test_backbone_and_loss_compile_to_one_graph_for_all_lengths(objective: Objective | None) -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(backbone_and_loss, backend=counter, fullgraph=True)
    for num_edges in (11, 17, 23, 5):
        given = inputs_of(num_edges, objective)
        want, got = (run(function, given) for function in (backbone_and_loss, compiled))
        for value, true in zip(got, want, strict=True):
            torch.testing.assert_close(value, true, **EPS)
        assert all(gradient.abs().max() > 1e-6 for gradient in want[-4:])
    assert counter.frame_count == 2  # the first length, then any
