"""How often the policy loss goes over the logits: kernels launched, counted in the interpreter."""

from __future__ import annotations

import pytest
import torch
from g2rpo_kernels import Objective, Rewards, policy_loss_from_rewards

from launched import kernel_names


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the kernels that ran, in their order."""
    return kernel_names(monkeypatch)


def kernels_of(launched: list[str], objective: Objective) -> list[str]:
    """Kernels of a loss from rewards, which must leave d logits over the logits before backward is called."""
    logits = torch.randn(6, 300, generator=torch.Generator().manual_seed(1))
    leaf = logits.clone().requires_grad_()
    rewards = Rewards(
        reward_RK=torch.tensor([[1.0], [0.0], [1.0]]),
        group_R=torch.zeros(3),
        row_T=torch.tensor([0, 0, 1, 1, 2, 2]),
    )
    out = policy_loss_from_rewards(
        leaf,
        torch.arange(6),
        rewards,
        torch.full((6,), 0.5),
        objective,
        old_logp_T=torch.full((6,), -6.0),
        overwrite_logits=True,
        impl="triton",
    )
    forward, written = launched.copy(), leaf.detach().clone()
    assert {"entropy", "ratio"} <= set(out.stats)
    assert not torch.equal(written, logits)
    out.loss.backward()
    # Backward's only kernel multiplies by the loss's gradient, and touches nothing where that is 1.
    assert launched[len(forward) :] == ["scale_kernel"]
    assert torch.equal(leaf.detach(), written)
    assert leaf.grad is not None
    assert torch.equal(leaf.grad, written)
    return forward


def test_token_ratios_take_one_launch_from_rewards_to_metrics_and_d_logits(launched: list[str]) -> None:
    assert kernels_of(launched, Objective(entropy_coef=0.01)) == ["policy_kernel"]


def test_sequence_ratios_go_over_the_logits_twice(launched: list[str]) -> None:
    assert kernels_of(launched, Objective(ratio="sequence")) == ["stats_kernel", "gradient_kernel"]
