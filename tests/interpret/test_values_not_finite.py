"""What is not finite shows in the kernels' results: on a GPU, where asking waits, nothing else reports it.

The interpreter's minimum and maximum keep NaN, those of a GPU do not: here they are a GPU's.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from g2rpo_kernels import Edges, Objective, Rewards, edge_coefficients
from g2rpo_kernels.group_advantage.reference import reference_op
from torch import Tensor

from drawn import normal

T, V = 5, 40
BAD = 3
"""The edge that is not finite."""


@pytest.fixture(autouse=True)
def _extremes_pass_over_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime.interpreter import InterpreterBuilder

    for name, function in (("create_maxnumf", np.fmax), ("create_minnumf", np.fmin)):
        monkeypatch.setattr(
            InterpreterBuilder, name, lambda self, a, b, function=function: self.binary_op(a, b, function)
        )


def edges(**changed: Tensor | None) -> Edges:
    coefficients = (torch.full((T,), 0.3), torch.full((T,), -0.2), torch.full((T,), 0.1))
    old, ref, rollout = (-3.0 + 0.1 * normal(T, seed=seed).float() for seed in (1, 2, 3))
    return Edges(*coefficients, old, ref, rollout)._replace(**changed)


def spoilt(value_T: Tensor, value: float = torch.nan) -> Tensor:
    value_T = value_T.clone()
    value_T[BAD] = value
    return value_T


def loss_and_gradient(logits_TV: Tensor, given: Edges, objective: Objective) -> tuple[Tensor, Tensor]:
    """As the kernel gives them: on a CPU `policy_loss` itself would refuse some of these values."""
    from g2rpo_kernels.policy_loss.triton_loss import policy_loss_triton

    leaf = logits_TV.clone().requires_grad_()
    loss = policy_loss_triton(leaf, torch.arange(T), given, objective, 1.0, None, False).loss
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


@pytest.mark.parametrize("surrogate", ["clip", "cispo", "sapo", "reinforce"])
@pytest.mark.parametrize("old", ["given", "none", "nan"])
@pytest.mark.parametrize("importance", ["none", "mask", "truncate"])
def test_a_logit_of_nan_shows_in_loss_and_gradient(surrogate: str, old: str, importance: str) -> None:
    given = edges()
    assert given.old_logp_T is not None
    given = given._replace(
        old_logp_T={"given": given.old_logp_T, "none": None, "nan": spoilt(given.old_logp_T)}[old]
    )
    cap = None if importance == "none" else 1.5
    objective = Objective(surrogate=surrogate, importance_cap=cap, importance_mask=importance == "mask")
    logits_TV = normal(T, V, seed=4).float()
    loss, gradient_TV = loss_and_gradient(logits_TV, given, objective)
    assert loss.isfinite()
    assert gradient_TV.isfinite().all()
    logits_TV[BAD, 7] = torch.nan
    loss, gradient_TV = loss_and_gradient(logits_TV, given, objective)
    assert loss.isnan()
    assert gradient_TV[BAD].isnan().all()
    assert gradient_TV[:BAD].isfinite().all()
    off = {name: spoilt(getattr(given, name), 0.0) for name in ("a_pos_T", "a_neg_T", "weight_T")}
    loss, gradient_TV = loss_and_gradient(logits_TV, given._replace(**off), objective)
    assert loss.isfinite()


@pytest.mark.parametrize("name", ["a_pos_T", "a_neg_T", "weight_T", "ref_logp_T"])
@pytest.mark.parametrize("kl", ["k1", "k2", "k3"])
def test_a_constant_of_nan_shows_in_the_loss(name: str, kl: str) -> None:
    given = edges()
    objective = Objective(kl=kl, kl_coef=0.1, kl_times_ratio=True)  # pyright: ignore[reportArgumentType]
    assert loss_and_gradient(normal(T, V, seed=4).float(), given, objective)[0].isfinite()
    bad = given._replace(**{name: spoilt(getattr(given, name))})
    loss, gradient_TV = loss_and_gradient(normal(T, V, seed=4).float(), bad, objective)
    assert loss.isnan()
    assert gradient_TV[BAD].isnan().all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("scale", ["group", "none", "batch"])
def test_a_reward_that_is_not_finite_shows_in_its_group(value: float, scale: str) -> None:
    """Even where all others of the group are equal, which the extremes would call a tie."""
    from g2rpo_kernels.group_advantage.triton import advantage_op
    from g2rpo_kernels.policy_loss.triton_loss import policy_loss_from_rewards_triton

    reward_RK = torch.tensor([[1.0], [value], [1.0], [0.0], [1.0], [1.0]])
    group_R = torch.tensor([0, 0, 0, 1, 1, 1])
    for op in (advantage_op, reference_op):
        advantage_R = op(reward_RK, group_R, None, scale, "sum_then_normalize", 1e-4)
        assert not advantage_R[:3].isfinite().any()
        assert advantage_R[3:].isfinite().all() != (scale == "batch")
        gdpo_R = op(reward_RK, group_R, None, "group", "normalize_then_sum", 1e-4)
        assert gdpo_R.isnan().all()
    rewards = Rewards(
        reward_RK=reward_RK,
        group_R=group_R,
        row_T=torch.zeros(T, dtype=torch.int64),
        scale=scale,  # pyright: ignore[reportArgumentType]
    )
    given = (normal(T, V, seed=4).float(), torch.arange(T), edges(), rewards, Objective(), 1.0, None, False)
    assert not policy_loss_from_rewards_triton(*given).loss.isfinite()


def test_an_advantage_of_nan_shows_in_the_edge_s_coefficients() -> None:
    advantage_M = torch.tensor([1.0, -2.0, torch.nan, 3.0])
    given = (advantage_M, torch.full((4,), 0.1), torch.tensor([0, 1, 3, 4]))
    for impl in ("triton", "reference"):
        a_pos_T, a_neg_T, weight_T = edge_coefficients(*given, impl=impl)
        assert a_pos_T.isnan().tolist() == a_neg_T.isnan().tolist() == [False, True, False]
        assert weight_T.isfinite().all()
