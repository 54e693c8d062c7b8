"""The credit stage: numbers by hand, the kernels' group_advantage, and that no processor changes a bit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from g2rpo_kernels import group_advantage
from hypothesis import given, settings
from hypothesis import strategies as st

from g2rpo_fast.credit import (
    CREDITS,
    BatchStd,
    Center,
    Channels,
    Rloo,
    Std,
    Whiten,
    advantages,
)
from g2rpo_fast.credit.groups import deviations
from g2rpo_fast.pieces import Credit, PromptStore, Scored
from g2rpo_fast.types import Doubles
from scored import NO_STORE, scored_of

TINY = 1e-12
RAGGED = [7, 3, 7, -2, 3, 7, 7, 3]
"""Three groups, of sizes 4, 3 and 1, mixed."""
CHAINS: dict[str, tuple[Credit, ...]] = {
    "GRPO": (Center(), Std()),
    "Dr. GRPO": (Center(),),
    "Lite PPO": (Center(), BatchStd()),
    "GDPO": (Channels(), Whiten()),
    "RLOO": (Rloo(),),
    "REINFORCE++": (Whiten(over="tokens"),),
    "REINFORCE++-baseline": (Center(), Whiten(over="tokens")),
}


def paid(chain: Sequence[Credit], totals: Sequence[float], groups: Sequence[int]) -> list[float]:
    return advantages(chain, scored_of([[total] for total in totals], groups), NO_STORE).tolist()


@pytest.mark.parametrize(
    ("chain", "want"),
    [
        ((Center(), Std(eps=TINY)), [1.5, -0.5, -0.5, -0.5]),
        ((Center(),), [0.75, -0.25, -0.25, -0.25]),
        ((Rloo(),), [1.0, -1 / 3, -1 / 3, -1 / 3]),
        ((Whiten(eps=TINY),), [1.5, -0.5, -0.5, -0.5]),
        ((Center(), BatchStd(eps=TINY)), [1.5, -0.5, -0.5, -0.5]),
    ],
)
def test_one_success_of_four(chain: tuple[Credit, ...], want: list[float]) -> None:
    assert paid(chain, [1, 0, 0, 0], [0] * 4) == pytest.approx(want, rel=1e-9)


def test_channels_tell_one_difference_from_two() -> None:
    """Two groups of two, which differ in one channel, and in both."""
    given = scored_of([[0, 1], [1, 1], [0, 0], [1, 1]], [0, 0, 1, 1])
    half = math.sqrt(0.5)
    grpo = advantages((Center(), Std(eps=TINY)), given, NO_STORE)
    np.testing.assert_allclose(grpo, [-half, half, -half, half], rtol=1e-9)
    summed = advantages((Channels(eps=TINY),), given, NO_STORE)
    np.testing.assert_allclose(summed, [-half, half, -2 * half, 2 * half], rtol=1e-9)
    gdpo = advantages((Channels(eps=TINY), Whiten(eps=TINY)), given, NO_STORE)
    np.testing.assert_allclose(gdpo, summed / math.sqrt(5 / 3), rtol=1e-9)


def test_a_row_weighs_by_its_tokens() -> None:
    """Rewards 1, 0 of three tokens and one: mean 3/4, standard deviation sqrt(3/16)."""
    given = scored_of([[1], [0]], [0, 1], lengths=[3, 1])
    got = advantages((Whiten(over="tokens", eps=TINY),), given, NO_STORE)
    np.testing.assert_allclose(got, [0.25 / math.sqrt(3 / 16), -0.75 / math.sqrt(3 / 16)], rtol=1e-9)
    masked = replace(given.rollouts[0], loss_mask=np.array([True, False, False]))
    even = replace(given, rollouts=(masked, given.rollouts[1]))
    np.testing.assert_allclose(
        advantages((Whiten(over="tokens", eps=TINY),), even, NO_STORE), [1.0, -1.0], rtol=1e-9
    )


def test_the_batch_scale_is_that_of_rewards_and_whitening_that_of_advantages() -> None:
    """Groups at 0 and at 10: rewards spread widely, advantages do not."""
    totals, groups = [0.0, 1.0, 10.0, 11.0], [0, 0, 1, 1]
    by_rewards, by_advantages = (
        paid((Center(), scale), totals, groups) for scale in (BatchStd(eps=TINY), Whiten(eps=TINY))
    )
    assert by_rewards == pytest.approx([-0.5 / math.sqrt(101 / 3), 0.5 / math.sqrt(101 / 3)] * 2)
    assert by_advantages == pytest.approx([-0.5 / math.sqrt(1 / 3), 0.5 / math.sqrt(1 / 3)] * 2)


def random_rewards(seed: int, num_channels: int) -> tuple[np.ndarray, np.ndarray]:
    """([R, K], [R]): binary and graded channels, groups of one to six in any order; an offset of 1000."""
    random = np.random.default_rng(seed)
    groups = random.permutation(np.repeat(np.arange(-2, 5), random.integers(1, 7, 7)))
    reward_RK = random.normal(size=(len(groups), num_channels))
    reward_RK[:, 0] = 1000 + (reward_RK[:, 0] > 0)
    return reward_RK, groups


def kernels(reward_RK: np.ndarray, groups: np.ndarray, **settings: object) -> np.ndarray:
    given = torch.tensor(reward_RK, dtype=torch.float64), torch.tensor(groups)
    return group_advantage(*given, **settings).numpy()  # type: ignore[arg-type]


SCALES: dict[str, tuple[Credit, ...]] = {
    "group": (Center(), Std()),
    "none": (Center(),),
    "batch": (Center(), BatchStd()),
}


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("scale", ["group", "none", "batch"])
def test_chains_equal_the_kernels_group_advantage(scale: str, seed: int, gaps: bool) -> None:
    reward_RK, groups = random_rewards(seed, 3)
    if gaps:
        reward_RK[:, 1:][np.random.default_rng(seed).random(reward_RK[:, 1:].shape) < 0.4] = np.nan
    weights = [1.0, 0.5, -0.25]
    got = advantages(
        SCALES[scale],
        scored_of(reward_RK, groups.tolist(), weights=weights),
        NO_STORE,
    )
    weight_K = torch.tensor(weights, dtype=torch.float64)
    want = kernels(np.nan_to_num(reward_RK), groups, channel_weight_K=weight_K, scale=scale)
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)
    assert np.abs(got).max() > 0.1


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_channels_and_whitening_equal_the_kernels_group_advantage(seed: int, gaps: bool) -> None:
    reward_RK, groups = random_rewards(seed, 3)
    weights = [1.0, 0.5, -0.25]
    if gaps:  # the op takes no gaps: channel by channel, over the rows that have one
        reward_RK[:, 1:][np.random.default_rng(seed).random(reward_RK[:, 1:].shape) < 0.4] = np.nan
        sum_R = np.zeros(len(groups))
        for reward_R, weight in zip(reward_RK.T, weights, strict=True):
            has_R = ~np.isnan(reward_R)
            sum_R[has_R] += weight * kernels(reward_R[has_R, None], groups[has_R])
        want = kernels(sum_R[:, None], 0 * groups)
    else:
        weight_K = torch.tensor(weights, dtype=torch.float64)
        want = kernels(reward_RK, groups, channel_weight_K=weight_K, aggregation="normalize_then_sum")
    got = advantages((Channels(), Whiten()), scored_of(reward_RK, groups.tolist(), weights=weights), NO_STORE)
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)
    assert np.abs(got).max() > 0.1


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("value", [0.1, 1 / 3, 1e9 + 0.1, -0.7])
def test_equal_rewards_give_exactly_zero(name: str, value: float) -> None:
    assert paid(CHAINS[name], [value] * 7, [0] * 7) == [0.0] * 7


@pytest.mark.parametrize("name", ["GRPO", "Dr. GRPO", "Lite PPO", "RLOO"])
def test_a_group_of_one_gets_exactly_zero(name: str) -> None:
    got = paid(CHAINS[name], [1.0, 0.0, 5.0, 0.3], [0, 0, 1, 0])
    assert got[2] == 0.0
    assert got[0] > 0.1


@pytest.mark.parametrize("name", CHAINS)
def test_a_row_that_no_channel_applies_to_is_not_there(name: str) -> None:
    none = math.nan
    rewards, groups = [[1, 0.3], [0, none], [none, none], [2, 0.5], [none, none], [1, 0]], [0, 0, 0, 1, 1, 1]
    got = advantages(CHAINS[name], scored_of(rewards, groups), NO_STORE)
    rows = [0, 1, 3, 5]
    alone = scored_of([rewards[row] for row in rows], [groups[row] for row in rows])
    assert got[rows].tolist() == advantages(CHAINS[name], alone, NO_STORE).tolist()
    assert got[[2, 4]].tolist() == [0.0, 0.0]
    assert np.abs(got[rows]).min() > 1e-3
    nobody = scored_of([[none, none]] * 2, [0, 0])
    assert advantages(CHAINS[name], nobody, NO_STORE).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("name", ["GDPO", "REINFORCE++-baseline"])
def test_a_group_of_equal_rewards_teaches_nothing_in_a_whitened_batch(name: str) -> None:
    """The batch's mean is 0 up to rounding; the group's advantages are exactly 0."""
    got = paid(CHAINS[name], [0.1, 0.2, 0.7, 0.4, 0.4, 0.4], [0, 0, 0, 1, 1, 1])
    assert got[3:] == [0.0] * 3
    assert min(map(abs, got[:3])) > 0.1


def test_rounding_of_a_weighted_sum_is_not_a_difference() -> None:
    """0.1 + 0.2 and 0.3 + 0 differ in the last bit only."""
    given = scored_of([[0.1, 0.2], [0.3, 0.0]], [0, 0])
    assert given.rewards.total_R[0] != given.rewards.total_R[1]
    assert advantages((Center(), Std()), given, NO_STORE).tolist() == [0.0, 0.0]


def test_statistics_are_sums_in_the_order_of_the_rows() -> None:
    """The same bits as one Python addition after the other, so the same on every machine."""
    values, groups = random_rewards(3, 1)
    value_R = values[:, 0] + np.random.default_rng(0).normal(size=len(groups))
    deviation_R, std_R = deviations(value_R, groups)
    for group in set(groups.tolist()):
        mates = [i for i, g in enumerate(groups.tolist()) if g == group]
        low = min(float(value_R[i]) for i in mates)
        mean, squares = 0.0, 0.0
        for i in mates:
            mean += float(value_R[i]) - low
        mean /= len(mates)
        for i in mates:
            apart = float(value_R[i]) - low - mean
            assert deviation_R[i] == apart
            squares += apart * apart
        assert {float(std_R[i]) for i in mates} == {math.sqrt(squares / max(len(mates) - 1, 1))}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.floats(-5, 5)), min_size=1, max_size=20), st.randoms())
def test_advantages_follow_a_permutation(pairs: list[tuple[int, float]], random) -> None:
    order = list(range(len(pairs)))
    random.shuffle(order)
    for chain in CHAINS.values():
        got = paid(chain, [r for _, r in pairs], [g for g, _ in pairs])
        moved = paid(chain, [pairs[i][1] for i in order], [pairs[i][0] for i in order])
        np.testing.assert_allclose(moved, np.asarray(got)[order], rtol=1e-9, atol=1e-9)
        assert abs(sum(got)) < 1e-9


@dataclass(frozen=True, kw_only=True)
class Broken(Credit):
    """Divides by the number of rows less one, or loses a row."""

    use = "broken"
    loses: bool = False

    def __call__(self, a_R: Doubles, scored: Scored, store: PromptStore) -> Doubles:
        return a_R[1:] if self.loses else a_R / np.float64(len(a_R) - 2)


def test_a_chain_names_the_piece_that_breaks_it() -> None:
    given = scored_of([[1.0], [0.5]], [0, 0])
    with pytest.raises(ValueError, match=r"^credit.broken: wanted \[2\] numbers, one a row, got \[1\]$"):
        advantages((Center(), Broken(loses=True)), given, NO_STORE)
    with (
        np.errstate(divide="ignore"),
        pytest.raises(ValueError, match=r"^credit.broken: wanted finite numbers, got inf at row 0$"),
    ):
        advantages((Center(), Broken()), given, NO_STORE)
    for total_R, problem in (
        (np.array([0.0, np.nan]), "finite numbers, got nan at row 1"),
        (np.zeros(3), r"\[2\] numbers, one a row, got \[3\]"),
    ):
        wrong = replace(given, rewards=replace(given.rewards, total_R=total_R))
        with pytest.raises(ValueError, match=rf"^rewards.total_R: wanted {problem}$"):
            advantages((Center(),), wrong, NO_STORE)


def test_no_rows_have_no_advantages() -> None:
    for chain in CHAINS.values():
        assert advantages(chain, scored_of(np.zeros((0, 1)), []), NO_STORE).shape == (0,)


def test_pieces_are_listed_by_the_name_in_use() -> None:
    assert list(CREDITS)[:6] == ["center", "std", "batch_std", "channels", "whiten", "rloo"]
    assert list(CREDITS)[-1] == "own"
    for name, piece in CREDITS.items():
        assert piece.use == name
        assert name == "own" or "Evidence: " in (piece.__doc__ or "")


@pytest.mark.parametrize(
    ("piece", "fields", "message"),
    [
        (Std, {"eps": 0.0}, "credit.std.eps: wanted above 0, got 0.0"),
        (BatchStd, {"eps": -1.0}, "credit.batch_std.eps: wanted above 0, got -1.0"),
        (Channels, {"eps": math.inf}, "credit.channels.eps: wanted a finite number, got inf"),
        (Whiten, {"over": "groups"}, "credit.whiten.over: wanted 'rows' or 'tokens', got 'groups'"),
    ],
)
def test_settings_are_checked(piece: type[Credit], fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        piece(**fields)
