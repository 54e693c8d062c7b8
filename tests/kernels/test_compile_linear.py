"""The ops inside torch.compile: one graph, the same numbers, reused for other lengths (CPU paths)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from g2rpo_kernels import (
    Clip,
    Edges,
    Objective,
    edge_coefficients,
    linear_policy_loss,
    logprob,
    policy_loss,
)
from g2rpo_kernels.linear_logprob import attach
from g2rpo_kernels.linear_logprob import cpu as linear_logprob_cpu
from g2rpo_kernels.linear_logprob.linear import LINEAR, checked_linear
from g2rpo_kernels.linear_policy_loss import cpu as linear_policy_loss_cpu
from g2rpo_kernels.linear_policy_loss.arguments import PROBLEM, Problem
from g2rpo_kernels.logprob import cpu as logprob_cpu
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

from compiled_loss import EPS, SEQUENCE, TOKEN, D, V, check_one_graph, edges_of
from drawn import normal


@pytest.mark.parametrize(
    ("objective", "impl"),
    [
        (None, "cpu"),
        (TOKEN[0], "cpu"),
        pytest.param(SEQUENCE[0], "cpu", marks=pytest.mark.deep),
        pytest.param(TOKEN[0], "reference", marks=pytest.mark.deep),
    ],
)
def test_backbone_and_loss_compile_to_one_graph_for_all_lengths(
    objective: Objective | None, impl: str
) -> None:
    check_one_graph(objective, impl=impl)


def calls() -> dict[str, tuple[Any, tuple[Any, ...]]]:
    hidden, head, bias = normal(4, D, seed=1).bfloat16(), normal(V, D, seed=2), normal(V, seed=3)
    target, needs = torch.tensor([0, 5, 36, 2]), [True, False, True]
    leaf = hidden.clone().requires_grad_()
    linear = checked_linear(leaf, head, target, torch.tensor([3, 0, 0, 1]), bias, 0.9, 30.0, None)
    arguments = PROBLEM.pack(Problem(linear, edges_of(4), SEQUENCE[0], None, tuple(needs)))
    frozen = tuple(value.detach() if isinstance(value, Tensor) else value for value in arguments)
    logits, rows = normal(4, V, seed=4), [normal(4, seed=seed) for seed in range(5, 9)]
    loss = torch.tensor(2.0, dtype=torch.float64)
    return {
        "logprob": (logprob_cpu.forward_op, (logits.requires_grad_(), target, 0.9, 30.0)),
        "logprob_backward": (
            logprob_cpu.backward_op,
            (logits.detach(), target, rows, rows[0], None, rows[1], 0.9, 30.0),
        ),
        "linear_logprob": (linear_logprob_cpu.forward_op, (None, *LINEAR.pack(linear))),
        "linear_logprob_backward": (
            linear_logprob_cpu.backward_op,
            ([*rows, rows[0].abs()], None, rows[0], None, needs, 600, *frozen[: len(LINEAR.schema)]),
        ),
        "linear_policy_gradients": (linear_policy_loss_cpu.gradients_op, frozen),
        "linear_policy_loss": (
            attach.hand_over_op,
            (loss, leaf, head, None, hidden.clone(), None, None),
        ),
        "scale": (attach.scale_, (normal(3, seed=9), loss)),
    }


@pytest.mark.parametrize("name", calls())
def test_registered_op_passes_opcheck(name: str) -> None:
    op, arguments = calls()[name]
    # Handing a gradient over and multiplying it in place cannot be repeated, as this one wants.
    left_out = {"test_aot_dispatch_dynamic"} if name == "linear_policy_loss" else set()
    tests = {"test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"}
    results = torch.library.opcheck(op, arguments, test_utils=sorted(tests - left_out))
    assert set(results.values()) == {"SUCCESS"}


def losses(logits: Tensor, target: Tensor, member_ptr: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    edges = Edges(*edge_coefficients(weight - 0.5, weight, member_ptr))
    out = policy_loss(logits * 2, target, edges, TOKEN[1], impl="cpu")
    logp, entropy, lse = logprob(logits, target, temperature=1.1, impl="cpu")
    return out.loss + (logp + 0.1 * entropy - 0.2 * lse).sum(), out.entropy_T, out.stats["ratio"][0]


def test_ops_on_logits_compile_to_one_graph_for_all_lengths() -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(losses, backend=counter, fullgraph=True)
    for num_edges in (7, 9, 4):
        logits = normal(num_edges, V, seed=1).requires_grad_()
        target = torch.arange(num_edges) % V
        given = (logits, target, 2 * torch.arange(num_edges + 1), normal(2 * num_edges, seed=2).abs())
        results = []
        for function in (losses, compiled):
            loss, *seen = function(*given)
            results.append((loss.detach(), *seen, torch.autograd.grad(loss, logits)[0]))
        for value, true in zip(*results, strict=True):
            torch.testing.assert_close(value, true, **EPS)
        assert results[0][-1].abs().max() > 0.1
    assert counter.frame_count == 2


NINE = edges_of(9)


def step(hidden: Tensor, head: Tensor, objective: Objective) -> Tensor:
    target = torch.arange(len(hidden)) % V
    return linear_policy_loss(hidden.tanh(), head, target, NINE, objective, impl="cpu").loss * 3


def gradients(function: Any, *given: Any) -> list[Tensor]:
    leaves = [normal(9, D, seed=1).requires_grad_(), normal(V, D, seed=2).requires_grad_()]
    loss = function(*leaves, *given)
    loss.backward()
    return [loss.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def test_other_settings_are_not_mistaken_for_those_compiled() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    seen = []
    for coef in (0.0, 0.1, 0.2, 0.3):
        objective = Objective(surrogate=Clip(low=0.3 - coef), entropy_coef=coef)
        want, got = gradients(step, objective), gradients(compiled, objective)
        for value, true in zip(got, want, strict=True):
            torch.testing.assert_close(value, true, **EPS)
        seen.append(float(want[0]))
    assert len(set(seen)) == 4


@pytest.mark.parametrize("reentrant", [False, True])
def test_loss_compiles_under_activation_checkpointing(reentrant: bool) -> None:
    torch._dynamo.reset()

    def checkpointed(hidden: Tensor, head: Tensor) -> Tensor:
        return checkpoint(step, hidden, head, TOKEN[1], use_reentrant=reentrant)

    want = gradients(step, TOKEN[1])
    compiled_inside = torch.compile(step, backend="aot_eager", fullgraph=True)

    def outside(hidden: Tensor, head: Tensor) -> Tensor:
        return checkpoint(compiled_inside, hidden, head, TOKEN[1], use_reentrant=reentrant)

    functions = [checkpointed, outside]
    if not reentrant:
        functions.append(torch.compile(checkpointed, backend="aot_eager", fullgraph=True))
    for function in functions:
        for value, true in zip(gradients(function), want, strict=True):
            torch.testing.assert_close(value, true, **EPS)
    assert want[1].abs().max() > 0.01


def test_gradients_are_handed_over_without_a_copy() -> None:
    """Where the loss's gradient is 1, d head is the tensor that forward filled."""
    head = normal(V, D, seed=2).requires_grad_()
    hidden, target = normal(9, D, seed=1), torch.arange(9)
    loss = linear_policy_loss(hidden, head, target, NINE, TOKEN[1], impl="cpu").loss
    operator: Any = loss.grad_fn
    filled = operator.gradients[1].data_ptr()
    loss.backward()
    assert head.grad is not None
    assert head.grad.data_ptr() == filled
