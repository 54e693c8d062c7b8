"""group_advantage and edge_coefficients against loops over groups, TRL's formulas, numbers by hand."""

from __future__ import annotations

import math
import statistics
from typing import Any

import pytest
import torch
from g2rpo_kernels import edge_coefficients, group_advantage
from g2rpo_kernels.group_advantage import Scale
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

RAGGED = torch.tensor([7, 3, 7, -2, 3, 7, 7, 3])
"""Three groups, of sizes 4, 3 and 1, mixed."""


def rewards(num_channels: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(len(RAGGED), num_channels, generator=generator, dtype=torch.float64)


def std(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def looped(total: list[float], groups: list[int], scale: str, eps: float) -> list[float]:
    """One group at a time."""
    advantages = []
    for value, group in zip(total, groups, strict=True):
        mates = [v for v, g in zip(total, groups, strict=True) if g == group]
        divisor = {"group": std(mates) + eps, "batch": std(total) + eps, "none": 1.0}[scale]
        advantages.append((value - statistics.fmean(mates)) / divisor)
    return advantages


def test_group_advantage_by_hand() -> None:
    reward_RK = torch.tensor([[1.0], [0.0], [0.0], [1.0], [5.0]])
    group_R = torch.tensor([0, 0, 0, 0, 1])
    got = group_advantage(reward_RK, group_R)
    high = 0.5 / (math.sqrt(1 / 3) + 1e-4)
    torch.testing.assert_close(
        got, torch.tensor([high, -high, -high, high, 0.0], dtype=torch.float64), rtol=1e-14, atol=0
    )
    assert float(got[0]) == pytest.approx(0.8658754297, abs=1e-9)
    assert got.dtype == torch.float64


@pytest.mark.parametrize("scale", ["group", "none", "batch"])
def test_group_advantage_equals_a_loop_over_ragged_groups(scale: Scale) -> None:
    reward_RK, weight_K = rewards(3), torch.tensor([1.0, 0.5, -0.25], dtype=torch.float64)
    total = (reward_RK * weight_K).sum(1).tolist()
    got = group_advantage(reward_RK, RAGGED, channel_weight_K=weight_K, scale=scale)
    want = torch.tensor(looped(total, RAGGED.tolist(), scale, 1e-4), dtype=torch.float64)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-13)
    assert float(got[3]) == 0.0  # alone in its group
    assert got.abs().max() > 0.1


def test_normalize_then_sum_equals_gdpo_written_out() -> None:
    reward_RK, weight = rewards(2), [1.0, 0.3]
    groups = RAGGED.tolist()
    channels = [looped(reward_RK[:, k].tolist(), groups, "group", 1e-4) for k in range(2)]
    summed = [weight[0] * a + weight[1] * b for a, b in zip(*channels, strict=True)]
    want = [(s - statistics.fmean(summed)) / (std(summed) + 1e-4) for s in summed]
    got = group_advantage(
        reward_RK, RAGGED, channel_weight_K=torch.tensor(weight), aggregation="normalize_then_sum"
    )
    # The weight 0.3 is given in float32.
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64), rtol=1e-6, atol=1e-6)
    exact = group_advantage(
        reward_RK,
        RAGGED,
        channel_weight_K=torch.tensor(weight, dtype=torch.float64),
        aggregation="normalize_then_sum",
    )
    torch.testing.assert_close(exact, torch.tensor(want, dtype=torch.float64), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scale", ["group", "none", "batch"])
@pytest.mark.parametrize("value", [0.1, 1 / 3, 1e9 + 0.1, -0.7])
def test_equal_rewards_give_exactly_zero(scale: Scale, value: float) -> None:
    reward_RK = torch.full((7, 1), value, dtype=torch.float64)
    group_R = torch.zeros(7, dtype=torch.int64)
    assert group_advantage(reward_RK, group_R, scale=scale).tolist() == [0.0] * 7
    assert group_advantage(reward_RK, group_R, aggregation="normalize_then_sum").tolist() == [0.0] * 7


def test_rounding_of_a_weighted_sum_is_not_a_difference() -> None:
    """0.1 + 0.2 and 0.3 + 0 differ in the last bit only."""
    reward_RK = torch.tensor([[0.1, 0.2], [0.3, 0.0]], dtype=torch.float64)
    assert float(reward_RK[0].sum()) != float(reward_RK[1].sum())
    assert group_advantage(reward_RK, torch.tensor([0, 0])).tolist() == [0.0, 0.0]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.floats(-5, 5)), min_size=1, max_size=20), st.randoms())
def test_advantages_sum_to_zero_and_follow_a_permutation(pairs: list, random) -> None:
    group_R = torch.tensor([g for g, _ in pairs])
    reward_RK = torch.tensor([[r] for _, r in pairs], dtype=torch.float64)
    got = group_advantage(reward_RK, group_R, scale="none")
    for group in set(group_R.tolist()):
        assert abs(float(got[group_R == group].sum())) < 1e-12
    order = list(range(len(pairs)))
    random.shuffle(order)
    torch.testing.assert_close(
        group_advantage(reward_RK[order], group_R[order], scale="none"), got[order], rtol=1e-12, atol=1e-13
    )


def test_edge_coefficients_by_hand() -> None:
    advantage_M = torch.tensor([1.0, -2.0, 0.5, -1.0])
    weight_M = torch.tensor([0.1, 0.1, 0.2, 0.3])
    got = edge_coefficients(advantage_M, weight_M, torch.tensor([0, 2, 2, 3, 4]))
    want = ([0.1, 0.0, 0.1, 0.0], [-0.2, 0.0, 0.0, -0.3], [0.2, 0.0, 0.2, 0.3])
    for value_T, true in zip(got, want, strict=True):
        torch.testing.assert_close(value_T, torch.tensor(true))
    empty = torch.zeros(0)
    assert all(value_T.shape == (0,) for value_T in edge_coefficients(empty, empty, torch.tensor([0])))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reward_RK": torch.tensor([[1.0], [torch.nan]])}, "wanted finite, got nan at row 1, channel 0"),
        ({"group_R": torch.tensor([0])}, r"wanted \[R, K\] and \[R\], got \[2, 1\], \[1\]"),
        ({"channel_weight_K": torch.ones(2)}, r"channel_weight_K: wanted \[1\], got \[2\]"),
        ({"scale": "std"}, "scale: wanted 'group', 'none' or 'batch', got 'std'"),
        ({"aggregation": "mean"}, "aggregation: wanted one of"),
        ({"aggregation": "normalize_then_sum", "scale": "none"}, "scale: wanted 'group' with aggregation="),
        ({"eps": 0.0}, "eps: wanted > 0 and finite, got 0.0"),
    ],
)
def test_group_advantage_names_what_is_wrong(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"reward_RK": torch.ones(2, 1), "group_R": torch.tensor([0, 0])} | change
    with pytest.raises(ValueError, match=message):
        group_advantage(**arguments)


def test_edge_coefficients_refuse_members_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"wanted member_ptr_T1\[-1\] entries, got 2, 2 and 3"):
        edge_coefficients(torch.ones(2), torch.ones(2), torch.tensor([0, 3]))
