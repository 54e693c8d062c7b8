"""Token credit and weights: worked examples, limits, and what they keep from step to step."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from g2rpo_fast.credit.floor import Floor
from g2rpo_fast.credit.tokens import ByProbability, Confident, Conflicts, Forking, Hotter
from g2rpo_fast.pieces import RowTokens, Scored
from g2rpo_fast.shaping import Majority
from scored import CLOCK, NO_STORE, outcome_of, recipe_with, scored_of


def tokens_of(rows: list[list[int]], **numbers: list[float]) -> RowTokens:
    """Of rows 0, 1, ... with these token ids; numbers along all of them."""
    return RowTokens(
        id_N=np.array([token for row in rows for token in row]),
        row_N=np.repeat(np.arange(len(rows)), [len(row) for row in rows]),
        place_N=np.concatenate([np.arange(len(row)) for row in rows]),
        rollout_logp_N=np.full(sum(map(len, rows)), -1.0),
        **{f"{name}_N": np.array(values) for name, values in numbers.items()},
    )


SCORED = scored_of([[1.0], [0.0]], [0, 0])


def test_confidence_is_the_worked_example() -> None:
    """pi = .05 .2 .25 .3272 .9: 1, 1.2163, 1.3093, 1.4, 1.4; it leaves 1 at ln 3 / 9."""
    p = [0.05, 0.2, 0.25, 0.3272, 0.9, math.log(3) / 9 - 1e-9, math.log(3) / 9 + 1e-3]
    weight_N = Confident()(tokens_of([[1] * 7], old_logp=np.log(p).tolist()), SCORED)
    np.testing.assert_allclose(weight_N[:5], [1, 1.2163, 1.3093, 1.4, 1.4], atol=5e-5)
    assert weight_N[5] == 1.0 < weight_N[6]
    with pytest.raises(ValueError, match=r"weights\.confident\.high: wanted at least low = 1\.0, got 0\.5"):
        Confident(high=0.5)


def test_advantages_grow_with_the_probability() -> None:
    tokens = tokens_of([[1, 1, 1]], old_logp=np.log([0.1, 0.5, 1.0]).tolist())
    a_N = np.array([2.0, 2.0, -2.0])
    np.testing.assert_allclose(ByProbability()(a_N, tokens, SCORED), [1.64, 1.8, -2.0], rtol=1e-12)
    by_sigmoid = ByProbability(form="sigmoid", slope=4.0, offset=0.5)(a_N, tokens, SCORED)
    assert by_sigmoid[1] == 2.0
    np.testing.assert_allclose(by_sigmoid[0], 4 / (1 + math.exp(1.6)), rtol=1e-12)
    np.testing.assert_allclose(ByProbability(slope=0.0, offset=1.0)(a_N, tokens, SCORED), a_N)


A, B, C, D, X = range(5)


def test_conflict_tokens_are_the_worked_example() -> None:
    """a b c d against a x c d: a, c and d count twice where right and not at all where wrong."""
    tokens = tokens_of([[A, B, C, D], [A, X, C, D]], entropy=[0.0] * 8)
    credit_N = Conflicts(gamma=0.0)(np.repeat([1.5, -0.5], 4), tokens, SCORED)
    np.testing.assert_allclose(credit_N, [3, 1.5, 3, 3, 0, -0.5, 0, 0], rtol=1e-12)


def test_conflicts_are_contiguous_and_of_the_same_group() -> None:
    scored = scored_of([[1.0], [0.0], [0.0]], [0, 0, 1])
    rows = [[A, B, C, B, D, D], [A, X, C, X, X], [A, B, C, B, D, D]]
    tokens = tokens_of(rows, entropy=[0.0] * 17)
    credit_N = Conflicts(gamma=0.0)(np.repeat([1.0, -1.0, -1.0], [6, 5, 6]), tokens, scored)
    np.testing.assert_allclose(credit_N[:6], [2, 1, 1, 1, 1, 1])  # c agrees, but b before it does not
    np.testing.assert_allclose(credit_N[6:11], [0, -1, -1, -1, -1])
    np.testing.assert_allclose(credit_N[11:], -np.ones(6))  # another prompt's answers are no conflict


def test_entropy_is_a_cost_and_too_much_of_it_leaves_a_row_out() -> None:
    tokens = tokens_of([[A, B], [C, D]], entropy=[0.2, 0.6, 0.9, 0.8])
    np.testing.assert_allclose(
        Conflicts()(np.array([1.0, 1.0, -1.0, -1.0]), tokens, SCORED), [0.96, 0.96, 0, 0], rtol=1e-12
    )
    always = Conflicts(most=math.inf)(np.array([1.0, 1.0, -1.0, -1.0]), tokens, SCORED)
    np.testing.assert_allclose(always[2:], -1 - 0.1 * 0.85, rtol=1e-12)


def test_a_policy_that_began_with_more_entropy_leaves_no_row_out() -> None:
    piece = Conflicts()
    assert piece.at(piece.memory(), CLOCK).most == math.inf
    for nll, most in ((0.9, math.inf), (0.5, math.log(2))):
        memory = piece.observe(piece.memory(), outcome_of(SCORED, {"rollout/nll": nll}))
        assert piece.observe(memory, outcome_of(SCORED, {"rollout/nll": 0.7})) == memory
        assert piece.at(memory, CLOCK).most == most


def test_forking_tokens_are_those_of_the_largest_entropy() -> None:
    tokens = tokens_of([[1] * 5, [1, 1]], entropy=[0.1, 0.2, 0.9, 1.0, 1.1, 0.5, 0.5])
    a_N = np.array([1.0] * 5 + [-1.0] * 2)
    assert Forking()(a_N, tokens, SCORED).tolist() == [0, 0, 0, 0, 1, -1, 0]
    assert Forking(share=0.6)(a_N, tokens, SCORED).tolist() == [0, 0, 1, 1, 1, -1, 0]
    assert Forking(share=1.0)(a_N, tokens, SCORED).tolist() == a_N.tolist()


def test_a_hotter_policy_is_the_worked_example() -> None:
    """H0 = .5, H = .3, one of four right: x = .1 / .25 = .4 (0.2 is over the most), alpha .2857."""
    scored = scored_of([[1.0], [0.0], [0.0], [0.0]], [0] * 4)
    tokens = tokens_of([[1, 1], [1], [1], [1]], old_logp=[-1.0] * 5, hot_logp=[-1.0, -1.5, -1.0, -1.0, -2.0])
    piece = Hotter(entropy=0.3)
    a_N = np.array([1.5, 1.5, -0.5, -0.5, -0.5])
    alpha = 0.4 / 1.4
    wanted = (1 - alpha) * a_N + alpha * np.array([1.0, math.exp(-0.5), 0, 0, 0])
    np.testing.assert_allclose(piece(a_N, tokens, scored), wanted, rtol=1e-12)
    on_target = Hotter(entropy=0.5)(a_N, tokens, scored)
    np.testing.assert_allclose(on_target, a_N, rtol=1e-12)
    none_right = replace(scored, rewards=replace(scored.rewards, total_R=np.zeros(4)))
    np.testing.assert_allclose(piece(a_N, tokens, none_right), a_N / 1.4, rtol=1e-12)


def test_a_hotter_policy_follows_the_entropy_of_the_last_update() -> None:
    piece = Hotter()
    memory = piece.memory()
    assert piece.at(memory, CLOCK).hot_temperature() == 1.2
    memory = piece.observe(memory, outcome_of(SCORED, {"update/logp": -0.7}))
    assert memory == {"entropy": 0.7}
    assert piece.at(memory, CLOCK).hot_temperature() == 0.8
    assert piece.observe(memory, outcome_of(SCORED, {"update/logp": math.nan})) == memory
    recipe = recipe_with(token_credit=(piece,))
    assert recipe.first_memory() == {"token_credit.hotter": {"entropy": 0.0}}
    assert recipe.at({"token_credit.hotter": memory}, CLOCK).token_credit == (Hotter(entropy=0.7),)
    assert recipe.noted({"token_credit.hotter": memory}, CLOCK) == {"credit/entropy": 0.7}


def test_negative_advantages_are_bounded() -> None:
    a_R = Floor()(np.array([1.5, -0.5, -0.05, 0.0]), SCORED, NO_STORE)
    assert a_R.tolist() == [1.5, -0.1, -0.05, 0.0]


def answering(answers: list[str | None], groups: list[int]) -> Scored:
    scored = scored_of([[0.0]] * len(answers), groups)
    return replace(scored, answer_of=lambda rollout: answers[rollout.member])


def test_the_majority_of_a_group_is_paid() -> None:
    """a a b -> 1 1 0; of a tie the answer given first; no answer is no vote."""
    scored = answering(["a", "a", "b", "b", "a", None, None], [0, 0, 0, 1, 1, 1, 2])
    rewards = Majority()(scored)
    assert rewards.total_R.tolist() == [1, 1, 0, 1, 0, 0, 0]
    assert rewards.channel("majority").tolist() == [1, 1, 0, 1, 0, 0, 0]
    assert rewards.accuracy_R.tolist() == [0.0] * 7
