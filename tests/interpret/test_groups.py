"""Group advantages, edge coefficients and the loss straight from rewards, in the interpreter."""

from __future__ import annotations

import pytest
import torch
from g2rpo_kernels import Objective, edge_coefficients, group_advantage
from g2rpo_kernels.group_advantage import Scale
from g2rpo_kernels.group_advantage.triton import BLOCK_R
from g2rpo_kernels.logprob.checks import Impl
from g2rpo_kernels.policy_loss import Rewards, policy_loss_from_rewards
from g2rpo_kernels.policy_loss.surrogates import RatioName
from torch import Tensor

SCALES = ["group", "none", "batch"]


def rewards(seed: int, num_rollouts: int, num_channels: int) -> tuple[Tensor, Tensor, Tensor]:
    """[R, K] rewards with ties, groups of one and a group that is all equal; ids in any order."""
    generator = torch.Generator().manual_seed(seed)
    group = torch.randint(-3, 5, (num_rollouts,), generator=generator) * 1_000_003
    group[0] = 77  # a group of one
    reward = torch.randint(0, 4, (num_rollouts, num_channels), generator=generator).double() / 3 + 1e3
    reward[group == group[-1]] = 0.1
    weight = torch.rand(num_channels, generator=generator, dtype=torch.float64)
    return reward, group, weight


@pytest.mark.parametrize("num_rollouts", [1, 2, 37])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("num_channels", [1, 3])
def test_group_advantage_equals_reference(num_rollouts: int, scale: Scale, num_channels: int) -> None:
    reward, group, weight = rewards(num_rollouts, num_rollouts, num_channels)
    for channel_weight in (None, weight):
        settings = {"channel_weight_K": channel_weight, "scale": scale, "eps": 1e-4}
        got = group_advantage(reward.T.contiguous().T, group, **settings, impl="triton")
        want = group_advantage(reward, group, **settings, impl="reference")
        assert got.dtype == torch.float64
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-11)
        assert float(got[0]) == 0.0  # a group of one
        assert (got[group == group[-1]] == 0).all()
        if num_rollouts > 2:
            assert want.abs().max() > (0.1 if scale != "batch" else 1e-3)


@pytest.mark.parametrize("num_rollouts", [1, 5, 40])
def test_group_advantage_of_standardised_channels_equals_reference(num_rollouts: int) -> None:
    reward, group, weight = rewards(3, num_rollouts, 2)
    settings = {"channel_weight_K": weight, "aggregation": "normalize_then_sum"}
    got, want = (group_advantage(reward, group, **settings, impl=impl) for impl in ("triton", "reference"))
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)
    if num_rollouts > 5:
        assert want.abs().max() > 0.1


def test_group_advantage_of_more_rollouts_than_a_block() -> None:
    generator = torch.Generator().manual_seed(1)
    reward = torch.rand(BLOCK_R + 3, 1, generator=generator)
    group = torch.arange(BLOCK_R + 3) % 100
    got, want = (group_advantage(reward, group, impl=i) for i in ("triton", "reference"))
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-11)
    assert want.abs().max() > 0.7


def test_group_advantage_by_hand() -> None:
    reward, group = torch.tensor([[1.0], [0.0], [3.0], [1.0]]), torch.tensor([5, 9, 5, 9], dtype=torch.int32)
    got = group_advantage(reward, group, eps=1e-12, impl="triton")
    half = 0.5**0.5
    torch.testing.assert_close(got, torch.tensor([-half, -half, half, half], dtype=torch.float64))
    assert group_advantage(torch.zeros(0, 2), torch.zeros(0), impl="triton").shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_edge_coefficients_equal_reference(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(2)
    counts = torch.randint(0, 6, (301,), generator=generator)
    ptr = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    advantage, weight = (torch.randn(int(ptr[-1]), generator=generator).to(dtype) for _ in range(2))
    got = edge_coefficients(advantage, weight, ptr, impl="triton")
    want = edge_coefficients(advantage.double(), weight.double(), ptr, impl="reference")
    for a, b in zip(got, want, strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a, b.to(dtype), rtol=1e-6 if dtype == torch.float32 else 1e-14, atol=0)
    assert ((want[0] != 0) & (want[1] != 0)).sum() > 20
    empty = edge_coefficients(advantage[:0], weight[:0], ptr[:1], impl="triton")
    assert [value.shape for value in empty] == [(0,)] * 3


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_loss_from_rewards_equals_reference(scale: Scale, ratio: RatioName) -> None:
    generator = torch.Generator().manual_seed(4)
    reward, group, channel_weight = rewards(8, 9, 2)
    row = torch.tensor([0, 0, 1, 3, 3, 3, 8, 8, 5], dtype=torch.int32)
    logits = 2 * torch.randn(len(row), 400, generator=generator)
    target = torch.randint(400, (len(row),), generator=generator)
    logp = torch.log_softmax(logits, -1).gather(1, target[:, None])[:, 0]
    old, ref = (logp + 0.3 * torch.randn(len(row), generator=generator) for _ in range(2))
    weight = torch.rand(len(row), generator=generator)
    o = Objective(ratio=ratio, kl_coef=0.05, entropy_coef=0.01)

    def run(impl: Impl, dtype: torch.dtype, overwrite: bool) -> tuple[Tensor, Tensor]:
        leaf = logits.to(dtype, copy=True).requires_grad_()
        out = policy_loss_from_rewards(
            leaf,
            target,
            Rewards(reward_RK=reward, group_R=group, row_T=row, channel_weight_K=channel_weight, scale=scale),
            weight,
            o,
            old_logp_T=old,
            ref_logp_T=ref,
            overwrite_logits=overwrite,
            impl=impl,
        )
        (gradient,) = torch.autograd.grad(out.loss, leaf)
        return out.loss.detach(), gradient

    want = run("reference", torch.float64, False)
    assert want[1].abs().max() > 0.01
    for overwrite in (False, True):
        got = run("triton", torch.float32, overwrite)
        torch.testing.assert_close(got[0].double(), want[0], rtol=2e-6, atol=2e-6)
        torch.testing.assert_close(got[1].double(), want[1], rtol=1e-5, atol=1e-6)


def test_rewards_that_do_not_fit_are_refused() -> None:
    fit = {"reward_RK": torch.zeros(3, 1), "group_R": torch.zeros(3), "row_T": torch.tensor([0, 2])}
    arguments = (torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64))
    for change, message in (
        ({"row_T": torch.tensor([0, 3])}, r"row_T: wanted values in \[0, 3\), got 0..3"),
        ({"row_T": torch.tensor([0])}, "row_T: wanted 2 entries, got 1"),
        ({"scale": "std"}, "scale: wanted"),
        ({"group_R": torch.zeros(2)}, "group_R: wanted"),
    ):
        given = Rewards(**(fit | change))  # pyright: ignore[reportArgumentType]
        with pytest.raises(ValueError, match=message):
            policy_loss_from_rewards(*arguments, given, torch.ones(2), Objective(), impl="triton")
