"""float16 logits that are overwritten by their gradient: what their dtype costs, as the docstring says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from g2rpo_kernels import Edges, Objective, policy_loss
from torch import Tensor

WEIGHT = 2.0**-14
SCALE = 2.0**12
V = 1000
TARGET = torch.tensor([3, 999])


def gradient(weight: float, scale: float, dtype: torch.dtype, **options: Any) -> Tensor:
    """d (scale * loss) / d logits at even probabilities 1 / V, over weight and scale, float64."""
    logits = torch.zeros(2, V, dtype=dtype).requires_grad_()
    ones = torch.ones(2)
    edges = Edges(weight * ones, 0 * ones, weight * ones)
    loss = policy_loss(logits, TARGET, edges, Objective(), **options).loss
    return torch.autograd.grad(scale * loss, logits)[0].double() / (weight * scale)


def true_gradient() -> Tensor:
    return 1 / V - torch.nn.functional.one_hot(TARGET, V).double()


@pytest.mark.parametrize(
    ("overwrite", "weight", "scale"), [(False, WEIGHT, SCALE), (True, WEIGHT * SCALE, 1.0)]
)
def test_float16_keeps_its_digits_when_the_loss_or_the_weights_are_scaled_in_time(
    overwrite: bool, weight: float, scale: float
) -> None:
    got = gradient(weight, scale, torch.float16, impl="triton", overwrite_logits=overwrite)
    error = (got / true_gradient() - 1).abs().max()
    assert float(error) < 2.0**-11  # one rounding


def test_scaling_the_loss_is_too_late_for_overwritten_float16_logits() -> None:
    """2^-14 / 1000 is stored as one subnormal step, 2^-24; a quarter of it as nothing."""
    got = gradient(WEIGHT, SCALE, torch.float16, impl="triton", overwrite_logits=True)
    assert float(got[0, 0]) == pytest.approx(2.0**-10)
    assert float(true_gradient()[0, 0]) == 1e-3
    gone = gradient(WEIGHT / 4, SCALE, torch.float16, impl="triton", overwrite_logits=True)
    assert float(gone[0, 0]) == 0.0
    assert int((gone != 0).sum()) == 2  # the targets' own
    assert float(gone.sum(1)[0]) < -0.99  # it should be 0


def test_float32_logits_lose_nothing_by_being_overwritten() -> None:
    got = gradient(WEIGHT / 4, 1.0, torch.float32, impl="triton", overwrite_logits=True)
    torch.testing.assert_close(got, true_gradient(), rtol=1e-6, atol=0)
