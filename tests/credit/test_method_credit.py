"""Advantages of published methods: numbers worked out by hand, and groups that are no ordinary ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from g2rpo_fast.config import config_from_dict, load_config
from g2rpo_fast.credit import (
    Center,
    Difficulty,
    Mad,
    Positive,
    Rank,
    Reject,
    SemanticEntropy,
    Std,
    ValidShare,
    VirtualSample,
    advantages,
)
from g2rpo_fast.methods import method_from_toml, own_method
from g2rpo_fast.methods.record import Method
from g2rpo_fast.pieces import Credit, Scored
from scored import NO_STORE, scored_of

TINY = 1e-12
CHAINS: dict[str, tuple[Credit, ...]] = {
    "RAFT": (Positive(),),
    "Reinforce-Rej": (Reject(),),
    "GPG": (Center(), ValidShare()),
    "NGRPO": (VirtualSample(),),
    "SEED-GRPO": (Center(), SemanticEntropy()),
    "FAKER-Air": (Rank(),),
    "DGPO": (Center(), Mad(), ValidShare(over="tokens"), Difficulty()),
}


def credited(chain: Sequence[Credit], scored: Scored) -> list[float]:
    return advantages(chain, scored, NO_STORE).tolist()


def paid(chain: Sequence[Credit], totals: Sequence[float], groups: Sequence[int]) -> list[float]:
    return credited(chain, scored_of([[total] for total in totals], groups))


def test_an_empty_chain_is_the_raw_rewards() -> None:
    assert paid((), [1.0, -1.0, 0.25], [0, 0, 1]) == [1.0, -1.0, 0.25]
    assert config_from_dict({"credit": []}).credit == ()
    raw: Method = own_method("raw", "credit = []\n")
    assert raw.settings == {"credit": []}
    with pytest.raises(ValueError, match=r"a\.toml: wanted the keys"):
        method_from_toml("a", "credit = []\n")


def test_raft_learns_from_what_was_paid_and_rejection_from_groups_that_differ() -> None:
    rewards, groups = [1, -1, 1, 1, -1, -1], [0, 0, 1, 1, 2, 2]
    assert paid((Positive(),), rewards, groups) == [1, 0, 1, 1, 0, 0]
    assert paid((Reject(),), rewards, groups) == [1, -1, 0, 0, 0, 0]


def test_silent_rows_are_made_up_for() -> None:
    """32 rows, 8 of them in two groups without a difference: alpha 4/3."""
    totals = [1.0, 0.0] * 12 + [1.0] * 4 + [0.0] * 4
    groups = [row // 4 for row in range(32)]
    got = paid((Center(), ValidShare()), totals, groups)
    assert got == pytest.approx([2 / 3, -2 / 3] * 12 + [0.0] * 8, rel=1e-12)
    assert paid((Center(), ValidShare()), [1.0, 1.0, 0.0, 0.0], [0, 0, 1, 1]) == [0.0] * 4


def test_silent_tokens_are_made_up_for() -> None:
    """Of 12 tokens 4 are in the group that differs."""
    scored = scored_of([[1.0], [0.0], [1.0], [1.0]], [0, 0, 1, 1], lengths=[3, 1, 6, 2])
    assert credited((ValidShare(over="tokens"),), scored) == pytest.approx([3.0, 0.0, 3.0, 3.0])


def test_a_virtual_sample_stands_beside_each_group() -> None:
    totals, groups = [0, 0, 0, 0, 1, 0, 0, 0, 1, 1], [0] * 4 + [1] * 4 + [2] * 2
    got = paid((VirtualSample(eps=TINY),), totals, groups)
    assert got[:8] == pytest.approx(
        [-0.2 / math.sqrt(0.2)] * 4 + [0.6 / math.sqrt(0.3)] + [-0.4 / math.sqrt(0.3)] * 3
    )
    assert np.round(got[:6], 4).tolist() == [-0.4472] * 4 + [1.0954, -0.7303]
    assert got[8:] == [0.0, 0.0]
    assert paid((VirtualSample(best=3.0, eps=TINY),), [3.0, 3.0], [0, 0]) == [0.0, 0.0]
    assert paid((VirtualSample(eps=TINY),), [0.0], [0]) == pytest.approx([-math.sqrt(0.5)])


def test_mean_absolute_deviation_gives_every_group_the_same_mass() -> None:
    chain = (Center(), Mad(eps=TINY))
    assert paid(chain, [1, 0, 0, 0], [0] * 4) == pytest.approx([2, -2 / 3, -2 / 3, -2 / 3])
    got = paid(chain, [1, 0, 0, 0, 0.1, 0.2, 0.3], [0, 0, 0, 0, 1, 1, 1])
    assert (sum(map(abs, got[:4])), sum(map(abs, got[4:]))) == pytest.approx((4, 3))


def test_harder_questions_weigh_more() -> None:
    """Accuracies 1/4 and 3/4, T = 2; a third group is silent and has no part in the softmax."""
    totals, groups = [1, 0, 0, 0, 1, 1, 1, 0, 1, 1], [0] * 4 + [1] * 4 + [2] * 2
    got = paid((Difficulty(),), totals, groups)
    hard = 2 / (1 + math.exp(-0.25))
    assert got == pytest.approx([hard, 0, 0, 0, *[2 - hard] * 3, 0, 1, 1])
    assert np.round([got[0], got[4]], 4).tolist() == [1.1244, 0.8756]


def test_a_low_temperature_leaves_the_hardest_question() -> None:
    totals, groups = [1, 0, 0, 0, 1, 1, 1, 0], [0] * 4 + [1] * 4
    assert paid((Difficulty(temperature=1e-6),), totals, groups) == [2, 0, 0, 0, 0, 0, 0, 0]


def test_a_group_that_differs_by_other_rewards_counts_as_solved() -> None:
    """Accuracy is the first channel: half in group 0, nobody in group 1, not told in group 2."""
    none = math.nan
    rewards = [[1, 0], [0, 0], [0, 1], [0, 0], [none, 1], [none, 0]]
    scored = scored_of(rewards, [0, 0, 1, 1, 2, 2])
    scored.rewards.accuracy_R[4:] = np.nan
    half, solved = math.exp(-0.25), math.exp(-0.5)
    whole = (half + 2 * solved) / 3
    assert credited((Difficulty(),), scored) == pytest.approx([half / whole, 0] + [solved / whole, 0] * 2)


@pytest.mark.parametrize("name", CHAINS)
def test_odd_batches(name: str) -> None:
    """None, groups of one, all alike, and rows that no channel applies to."""
    chain = CHAINS[name]
    assert credited(chain, scored_of(np.zeros((0, 1)), [])) == []
    assert np.isfinite(paid(chain, [1.0, 0.0], [0, 1])).all()
    alike = paid(chain, [0.1] * 3, [0] * 3)
    assert len(set(alike)) == 1
    if name not in ("RAFT", "NGRPO", "FAKER-Air"):
        assert alike == [0.0] * 3
        assert paid(chain, [1.0, 0.0, 5.0, 0.0], [0, 0, 1, 0])[2] == 0.0
    rewards = [[1.0], [math.nan], [0.0], [math.nan]]
    got = credited(chain, scored_of(rewards, [0, 0, 0, 1]))
    assert [got[0], got[2]] == paid(chain, [1.0, 0.0], [0, 0])
    assert [got[1], got[3]] == [0.0, 0.0]
    assert abs(got[0]) > 0.1


@pytest.mark.parametrize("name", CHAINS)
def test_the_order_of_groups_is_nothing_to_a_row(name: str) -> None:
    """Names of groups may be any numbers; rows of a group keep their order, and every bit."""
    random = np.random.default_rng(3)
    totals, groups = random.integers(0, 3, 24) / 2, random.integers(0, 5, 24)
    other = np.asarray([7, -3, 40, 2, 9])[groups]
    assert paid(CHAINS[name], totals.tolist(), groups.tolist()) == pytest.approx(
        paid(CHAINS[name], totals.tolist(), other.tolist()), rel=1e-14
    )


def test_methods_name_these_pieces() -> None:
    for name, key in {"RAFT": "raft", "GPG": "gpg", "NGRPO": "ngrpo", "DGPO": "dgpo"}.items():
        assert load_config("embedded", method=key).credit == CHAINS[name]
    assert load_config("embedded", method="raft_plus_plus").credit == CHAINS["RAFT"]
    assert load_config("embedded", method="reinforce_rej").credit == CHAINS["Reinforce-Rej"]
    assert load_config("embedded", method="multi_objective_grpo").credit == (Center(), Std())
    ngrpo = load_config("embedded", method="ngrpo").terms[0]
    assert (vars(ngrpo)["low"], vars(ngrpo)["high"]) == (0.16, 0.24)
