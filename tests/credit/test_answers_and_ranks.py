"""Advantages by what a group's answers are (SEED-GRPO, PC-GRPO), and by ranks (FAKER-Air)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from g2rpo_fast.assemble import assemble
from g2rpo_fast.config import load_config
from g2rpo_fast.credit import PuzzleCurriculum, Rank, SemanticEntropy, advantages
from g2rpo_fast.credit.rank import centred_ranks
from g2rpo_fast.credit.semantic_entropy import monte_carlo_entropy
from g2rpo_fast.pieces import Credit, Scored
from runs import tiny_config
from scored import CLOCK, NO_STORE, outcome_of, recipe_with, scored_of


def answered(scored: Scored, answers: Sequence[str | None]) -> Scored:
    """Row i answers `answers[i]`."""
    texts = [str(row) for row in range(len(answers))]
    rollouts = tuple(replace(r, text=text) for r, text in zip(scored.rollouts, texts, strict=True))
    return replace(scored, rollouts=rollouts, answer_of=lambda rollout: answers[int(rollout.text)])


def paid(piece: Credit, scored: Scored) -> list[float]:
    return advantages((piece,), scored, NO_STORE).tolist()


def test_answers_that_scatter_make_updates_smaller() -> None:
    """Answers a a b c of equal mass: entropy -(ln 1/2 + 2 ln 1/4) / 3, of ln 4 at most."""
    entropy = monte_carlo_entropy([-2.0] * 4, ["a", "a", "b", "c"])
    assert entropy == pytest.approx((math.log(2) + 2 * math.log(4)) / 3, rel=1e-12)
    assert round(entropy, 4) == 1.1552
    rewards = [[1.0], [1.0], [-1.0], [0.5], [1.0], [1.0]]
    scored = answered(scored_of(rewards, [0, 0, 0, 0, 1, 1]), ["a", "a", "b", "c", None, None])
    factor = 1 - 0.02 * entropy / math.log(4)
    assert round(factor, 5) == 0.98333
    want = [factor, factor, -factor, factor / 2, 1, 1]
    assert paid(SemanticEntropy(), scored) == pytest.approx(want, rel=1e-12)


def test_masses_are_of_whole_responses() -> None:
    """Likelihoods 3/4 and 1/4: -(ln 3/4 + ln 1/4) / 2; a constant is nothing to it, however unlikely."""
    want = -(math.log(0.75) + math.log(0.25)) / 2
    for offset in (0.0, -4000.0):
        logp = [math.log(0.75) + offset, math.log(0.25) + offset]
        assert monte_carlo_entropy(logp, ["a", "b"]) == pytest.approx(want, rel=1e-9)
    scored = answered(scored_of([[1.0], [1.0]], [0, 0], lengths=[2, 4]), ["a", "b"])
    given = np.asarray([np.nan, -0.25, -0.25, np.nan], np.float32)
    long = replace(scored.rollouts[1], rollout_logp=given)
    scored = replace(scored, rollouts=(scored.rollouts[0], long))
    share = 1 / (1 + math.exp(-0.5))  # of the second row: exp(-0.5) against exp(-1)
    entropy = -(math.log(share) + math.log(1 - share)) / 2
    assert paid(SemanticEntropy(alpha=0.5), scored) == pytest.approx([1 - 0.5 * entropy / math.log(2)] * 2)
    far = replace(long, rollout_logp=np.full(4, -500.0, np.float32))
    scored = replace(scored, rollouts=(scored.rollouts[0], far))
    assert paid(SemanticEntropy(), scored) == [0.0, 0.0]  # never below 0


def test_puzzles_of_medium_difficulty_weigh_most_where_answers_differ() -> None:
    """One of eight solved, answers A and seven B of six choices; then six different answers of eight."""
    piece = PuzzleCurriculum(num_choices=6)
    few, many = "ABBBBBBB", "ABBCCDEF"
    assert round(piece.dispersion(list(few)), 4) == 0.2103
    assert round(piece.dispersion(list(many)), 4) == 0.9671
    for answers, want in ((few, 0.2006), (many, 0.4303)):
        scored = answered(scored_of([[1.0]] + [[0.0]] * 7, [0] * 8), list(answers))
        got = paid(piece, scored)
        assert round(got[0], 4) == want
        assert got[1:] == [0.0] * 7


def test_puzzles_of_orders_count_distinct_answers() -> None:
    """Three of four, mean reward 1/2: (2/3)^(1/2); no answer is one; gamma 0 leaves difficulty alone."""
    rewards = [[1.0], [0.5], [0.5], [0.0]]
    scored = answered(scored_of(rewards, [0] * 4), ["12", "21", "21", None])
    assert paid(PuzzleCurriculum(), scored)[0] == pytest.approx(math.sqrt(2 / 3))
    assert round(paid(PuzzleCurriculum(), scored)[0], 4) == 0.8165
    assert paid(PuzzleCurriculum(gamma=0.0), scored) == [1.0, 0.5, 0.5, 0.0]
    alike = answered(scored_of(rewards, [0] * 4), ["12"] * 4)
    assert paid(PuzzleCurriculum(), alike) == [0.0] * 4
    alone = answered(scored_of([[0.5]], [0]), ["12"])
    assert paid(PuzzleCurriculum(), alone) == [0.0]


def test_puzzles_want_rewards_that_are_shares() -> None:
    for wrong in (-0.5, 1.5):
        scored = answered(scored_of([[wrong], [1.0]], [0, 0]), ["1", "2"])
        with pytest.raises(ValueError, match=rf"puzzle_curriculum: wanted rewards in \[0, 1\], got {wrong}"):
            paid(PuzzleCurriculum(), scored)
    rounded = answered(scored_of([[1 + 1e-12], [1.0]], [0, 0]), ["1", "2"])
    assert paid(PuzzleCurriculum(), rounded) == [0.0, 0.0]


def test_answers_that_nobody_finds_are_told_before_the_run(tmp_path: Path) -> None:
    config = replace(
        tiny_config(tmp_path / "run", reward={"functions": ["runs:brevity", "exact_match"]}),
        credit=load_config("embedded", method="seed_grpo").credit,
    )
    told = r"^reward\.accuracy: wanted a channel that finds .* for credit\.semantic_entropy .*brevity$"
    with pytest.raises(ValueError, match=told):
        assemble(config, lambda line: None)
    assert not (tmp_path / "run").exists()


def test_ranks_are_centred_and_equal_values_share_theirs() -> None:
    want = [-1, -1 / 3, 1 / 3, 1]
    assert centred_ranks(np.asarray([0.1, 0.2, 5, 6.0]), np.zeros(4, np.int64)) == pytest.approx(want)
    values = np.asarray([3.0, 1.0, 0.0, 1.0, 7.0, 2.0, 2.0])
    groups = np.asarray([4, 4, 4, 4, 9, -1, -1])
    assert centred_ranks(values, groups) == pytest.approx([1, 0, -1, 0, 0, 0, 0])
    assert centred_ranks(np.zeros(0), np.zeros(0, np.int64)).shape == (0,)


def test_ranks_are_blended_with_a_running_z_score() -> None:
    scored = scored_of([[0.0], [1.0], [2.0], [3.0]], [0] * 4)
    got = paid(Rank(blend=0.25, mean=1.0, std=2.0, eps=1e-12), scored)
    ranks, z = [-1, -1 / 3, 1 / 3, 1], [-0.5, 0, 0.5, 1]
    assert got == pytest.approx([0.75 * r + 0.25 * s for r, s in zip(ranks, z)])
    assert paid(Rank(blend=0.0), scored) == pytest.approx(ranks)


def test_the_running_mean_follows_the_batches() -> None:
    """Rewards 1 and 3: mean 2, standard deviation sqrt 2; a twentieth of the way there."""
    piece = Rank(rate=0.05, mean=1.0, std=0.0)
    recipe = recipe_with(credit=(piece,))
    memory = recipe.first_memory()
    assert memory == {"credit.rank": {"mean": 1.0, "std": 0.0}}
    scored = scored_of([[1.0], [3.0], [math.nan]], [0, 0, 0])
    after = recipe.observed(memory, outcome_of(scored))
    assert after["credit.rank"] == pytest.approx({"mean": 1.05, "std": 0.05 * math.sqrt(2)})
    (now,) = recipe.at(after, CLOCK).credit
    assert now == replace(piece, **after["credit.rank"])
    assert recipe.noted(after, CLOCK)["credit/rank_mean"] == pytest.approx(1.05)
    nothing = scored.keep([])
    assert recipe.observed(after, outcome_of(nothing)) == after
    assert recipe.observed(after, outcome_of(scored.keep([2]))) == after
