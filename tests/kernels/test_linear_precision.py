"""`product_dtype` of the linear ops: operands rounded once, everything else as precise as before."""

from __future__ import annotations

import pytest
import torch
from g2rpo_kernels import Edges, Objective, linear_logprob, linear_policy_loss
from torch import Tensor

S, D, V = 24, 16, 40
SOURCE_T = torch.tensor([0, 0, 3, 5, 8, 8, 8, 20, 23, 11])
TARGET_T = torch.tensor([1, 0, 39, 7, 7, 12, 30, 2, 5, 9])


def leaves(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    shapes = ((S, D), (V, D))
    hidden_SD, head_VD = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return hidden_SD.requires_grad_(), head_VD.requires_grad_()


def edges(dtype: torch.dtype) -> Edges:
    generator = torch.Generator().manual_seed(3)
    a_T, old_logp_T = torch.randn(2, len(TARGET_T), generator=generator).to(dtype)
    return Edges(a_T.clamp(min=0), a_T.clamp(max=0), torch.full_like(a_T, 0.1), old_logp_T - 4)


def policy_loss(hidden_SD: Tensor, head_VD: Tensor, **options: object) -> Tensor:
    given = (hidden_SD, head_VD, TARGET_T, edges(torch.float64), Objective())
    return linear_policy_loss(*given, source_T=SOURCE_T, **options).loss  # type: ignore[arg-type]


def log_probabilities(hidden_SD: Tensor, head_VD: Tensor, **options: object) -> Tensor:
    given = (hidden_SD, head_VD, TARGET_T)
    return linear_logprob(*given, source_T=SOURCE_T, **options).logp_T.sum()  # type: ignore[arg-type]


OPS = {"policy_loss": policy_loss, "logprob": log_probabilities}


@pytest.mark.parametrize("impl", ["cpu", "reference"])
@pytest.mark.parametrize("op", OPS)
def test_operands_are_rounded_and_nothing_else(op: str, impl: str) -> None:
    """Value and gradients are those of the rounded operands, in float64; gradients keep float32's digits."""
    given = leaves()
    value = OPS[op](*given, product_dtype=torch.bfloat16, impl=impl)
    got = torch.autograd.grad(value, given)
    exact = [x.detach().bfloat16().double().requires_grad_() for x in given]
    truth = OPS[op](*exact, impl="reference")
    assert float(value.detach()) == pytest.approx(float(truth.detach()), rel=1e-6)
    unrounded = OPS[op](*leaves(torch.float64), impl="reference")
    assert abs(float((truth - unrounded).detach())) > 1e-4
    for gradient, wanted in zip(got, torch.autograd.grad(truth, exact), strict=True):
        assert gradient.dtype == torch.float32
        torch.testing.assert_close(gradient.double(), wanted, rtol=1e-5, atol=1e-6)
        assert not torch.equal(gradient, gradient.bfloat16().float())


def test_none_is_the_wider_of_the_operands() -> None:
    hidden_SD, head_VD = leaves()
    wanted = policy_loss(hidden_SD, head_VD.bfloat16())
    assert torch.equal(policy_loss(hidden_SD, head_VD.bfloat16(), product_dtype=torch.float32), wanted)
    rounded = policy_loss(hidden_SD.bfloat16(), head_VD.bfloat16())
    assert torch.equal(policy_loss(hidden_SD, head_VD, product_dtype=torch.bfloat16), rounded)


@pytest.mark.parametrize(
    ("dtype", "product", "message"),
    [
        (torch.float64, torch.bfloat16, "wanted no other or None with torch.float64, got torch.bfloat16"),
        (torch.float32, torch.float64, "wanted torch.float32, torch.bfloat16, torch.float16 or None"),
        (torch.float32, torch.int8, "got torch.int8"),
    ],
)
def test_other_dtypes_are_refused(dtype: torch.dtype, product: torch.dtype, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        policy_loss(*leaves(dtype), product_dtype=product)
