"""The launchers as registered ops: schemas, fake kernels, torch.compile and activation checkpointing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from g2rpo_kernels import Edges, Objective, logprob, policy_loss
from g2rpo_kernels.group_advantage import triton as groups
from g2rpo_kernels.linear_logprob import triton as linear_logprob
from g2rpo_kernels.linear_logprob import triton_attach
from g2rpo_kernels.linear_logprob.linear import LINEAR, checked_linear
from g2rpo_kernels.linear_policy_loss import triton as linear_policy_loss
from g2rpo_kernels.linear_policy_loss.arguments import PROBLEM, Problem
from g2rpo_kernels.logprob import triton as rows
from g2rpo_kernels.policy_loss import triton as policy
from g2rpo_kernels.policy_loss import triton_loss
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def case() -> tuple[Tensor, Tensor, Edges, Objective]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 50, generator=generator)
    target = torch.tensor([1, 2, 3, 49])
    a_pos, a_neg, weight, old = (torch.rand(4, generator=generator) for _ in range(4))
    return logits, target, Edges(a_pos, -a_neg, weight, -4 * old), Objective(entropy_coef=0.1)


def calls() -> dict[str, tuple[Any, tuple[Any, ...]]]:
    logits, target, edges, o = case()
    numbers = rows.row_numbers(logits, target, temperature=1.0, softcap=None)
    leaf, out, ones = logits.clone().requires_grad_(), torch.zeros_like(logits), torch.ones(4)
    inputs = policy.RowInputs.of(target, None, edges)
    given = policy.CALL.pack(policy.RowCall(inputs, o, 0.9, None))
    known = (numbers.lse_T, numbers.entropy_T, ones)
    rewards = torch.rand(4, 2), torch.tensor([5, 1, 5, 1])
    return {
        "logprob": (rows._logprob, (leaf, target, 0.9, 30.0)),
        "row_stats": (rows._row_stats, (logits, target, 1.0, None, torch.ones(50))),
        "row_gradient": (rows._row_gradient, (out, logits, target, *known, None, ones, 1.0, None, None)),
        "policy_rows": (policy.rows_op, (logits, *given)),
        "policy_rows_out": (policy.rows_out_op, (logits, out, *given)),
        "group_advantage": (groups.advantage_op, (*rewards, None, "group", "sum_then_normalize", 1e-4)),
        "edge_coefficients": (groups.edge_op, (ones, ones, torch.tensor([0, 1, 1, 4]))),
        "attach": (triton_loss._attach, (leaf, torch.tensor(2.0), target, *known, ones, 1.0, None)),
    }


def linear_calls() -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """float16 operands, whose gradients the loss keeps in float32; one of them frozen."""
    _, target, edges, _ = case()
    generator = torch.Generator().manual_seed(1)
    hidden, head = (torch.randn(n, 8, generator=generator).half() for n in (4, 50))
    hidden.requires_grad_()
    linear = checked_linear(hidden, head, target, None, torch.ones(50), 0.9, 30.0, None)
    numbers, needs = [torch.rand(4), torch.rand(4), torch.rand(4).double()], [True, False, True]
    sequence = edges._replace(
        member_ptr_T1=torch.arange(5), member_row_M=torch.tensor([0, 0, 1, 1]), num_rows=2, row_cuts=(2, 4),
        member_advantage_M=torch.ones(4), member_weight_M=torch.ones(4),
    )  # fmt: skip
    problem = Problem(linear, sequence, Objective(ratio="sequence"), None, tuple(needs))
    arguments = PROBLEM.pack(problem)
    frozen = tuple(value.detach() if isinstance(value, Tensor) else value for value in arguments)
    dhidden = torch.rand(4, 8)
    return {
        "linear_logprob": (linear_logprob.forward_op, (None, *LINEAR.pack(linear))),
        "linear_logprob_backward": (
            linear_logprob.backward_op,
            (numbers, torch.rand(4), None, torch.rand(4), needs, 4000, *frozen[: len(LINEAR.schema)]),
        ),
        "linear_policy_gradients": (linear_policy_loss.gradients_op, frozen),
        "linear_policy_loss": (
            triton_attach.attach_op,
            (torch.tensor(2.0), hidden, head, None, torch.tensor(0.5), dhidden, None, None),
        ),
        "rounded_product": (triton_attach._times, (dhidden, torch.tensor(0.5), torch.float16)),
    }


@pytest.mark.parametrize("name", [*calls(), *linear_calls()])
def test_registered_op_passes_opcheck(name: str) -> None:
    op, arguments = (calls() | linear_calls())[name]
    results = torch.library.opcheck(op, arguments)
    assert set(results.values()) == {"SUCCESS"}
    assert len(results) == 4


def test_losses_compile() -> None:
    logits, target, edges, o = case()

    def both(leaf: Tensor) -> Tensor:
        out = logprob(leaf * 2, target, impl="triton")
        return policy_loss(leaf, target, edges, o, impl="triton").loss + out.lse_T.sum() + out.logp_T.sum()

    results = []
    for function in (both, torch.compile(both, backend="aot_eager", fullgraph=True)):
        leaf = logits.clone().requires_grad_()
        loss = function(leaf)
        results.append((loss.detach(), *torch.autograd.grad(loss, leaf)))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-6, atol=1e-7)
    assert results[0][1].abs().max() > 0.1


@pytest.mark.parametrize("reentrant", [False, True])
def test_losses_under_activation_checkpointing(reentrant: bool) -> None:
    logits, target, edges, o = case()

    def loss_of(leaf: Tensor) -> Tensor:
        return policy_loss(leaf * 1.5, target, edges, o, overwrite_logits=True, impl="triton").loss

    plain, kept = (logits.clone().requires_grad_() for _ in range(2))
    want = torch.autograd.grad(loss_of(plain), plain)[0]
    checkpoint(loss_of, kept, use_reentrant=reentrant).backward()
    assert kept.grad is not None
    assert torch.equal(kept.grad, want)
    assert want.abs().max() > 0.1
