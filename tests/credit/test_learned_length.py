"""The learned weight of lengths: worked numbers, the gradient, limits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from g2rpo_fast.credit.tokens import LearnedLength
from g2rpo_fast.pieces import Outcome, RowTokens, Scored
from scored import CLOCK, outcome_of, recipe_with, scored_of


def tokens_of(scored: Scored) -> RowTokens:
    lengths = [len(rollout.response_ids) for rollout in scored.rollouts]
    row_N = np.repeat(np.arange(len(lengths)), lengths)
    place_N = np.concatenate([np.arange(length) for length in lengths])
    return RowTokens(id_N=row_N, row_N=row_N, place_N=place_N, rollout_logp_N=np.full(len(row_N), -1.0))


def factors(power: float, scored: Scored) -> np.ndarray:
    tokens = tokens_of(scored)
    return LearnedLength(power=power)(tokens, scored)[np.unique(tokens.row_N, return_index=True)[1]]


GROUP = scored_of([[1.0], [0.0], [-1.0]], [0, 0, 0], lengths=[2, 4, 6])


@pytest.mark.parametrize(
    ("power", "wanted"),
    [(0.0, [1, 1, 1]), (1.0, [0.86741, 0.99386, 1.13874]), (-1.0, [1.14851, 0.98112, 0.87037])],
)
def test_factors_are_the_worked_example_but_for_their_scale(power: float, wanted: list[float]) -> None:
    got = factors(power, GROUP)
    np.testing.assert_allclose(got * 3 / got.sum(), wanted, atol=6e-6)
    assert got @ [2, 4, 6] == pytest.approx(12, rel=1e-12)  # the sum of the weights stays


def test_the_slope_is_the_worked_example_and_moves_the_power() -> None:
    """A = 1, 0, -1: dJ/dlambda = -.09025 at 0, so lambda becomes -.009025."""
    outcome = Outcome(scored=GROUP, settled=GROUP, advantage_R=np.array([1.0, 0.0, -1.0]), stats={})
    piece = LearnedLength()
    assert piece.slope(GROUP, outcome.advantage_R) == pytest.approx(-0.09025, abs=5e-6)
    memory = piece.observe(piece.memory(), outcome)
    assert memory["power"] == pytest.approx(-0.009025, abs=5e-7)
    assert piece.at(memory, CLOCK) == replace(piece, power=memory["power"])
    again = piece.observe(memory, outcome)["power"]  # from the memory's power, not from the first
    assert again == pytest.approx(
        memory["power"] + 0.1 * piece.at(memory, CLOCK).slope(GROUP, outcome.advantage_R)
    )


@pytest.mark.parametrize("power", [0.0, 1.3, -0.7])
def test_the_slope_is_that_of_autograd(power: float) -> None:
    """Of the objective written out, over groups of different size; the scale of the weights is held."""
    lengths, groups = [3, 9, 4, 4, 7, 7, 1], [0, 0, 0, 0, 1, 1, 2]
    scored = scored_of([[0.0]] * 7, groups, lengths=lengths)
    advantage = torch.tensor([0.3, -1.2, 0.8, 0.1, 0.6, -0.6, 0.4], dtype=torch.float64)
    count, group = torch.tensor(lengths, dtype=torch.float64), torch.tensor(groups)
    exponent = torch.tensor(power, dtype=torch.float64, requires_grad=True)
    f = torch.zeros(7, dtype=torch.float64)
    for g in range(3):
        n = count[group == g]
        z = (n - n.mean()) / n.std(correction=0) if n.std(correction=0) > 0 else torch.zeros_like(n)
        f = f.masked_scatter(group == g, len(n) * torch.softmax((1 + z / 9) ** exponent, dim=0))
    scale = (count.sum() / (f * count).sum()).detach()
    (slope,) = torch.autograd.grad(scale * (f * count * advantage).sum() / count.sum(), exponent)
    assert LearnedLength(power=power).slope(scored, advantage.numpy()) == pytest.approx(
        slope.item(), rel=1e-10
    )
    np.testing.assert_allclose(factors(power, scored), (scale * f).detach().numpy(), rtol=1e-12)


def test_equal_lengths_and_single_rows_weigh_one() -> None:
    scored = scored_of([[1.0], [0.0], [1.0]], [0, 0, 1], lengths=[5, 5, 2])
    assert factors(2.0, scored).tolist() == [1.0, 1.0, 1.0]
    assert LearnedLength(power=2.0).slope(scored, np.array([1.0, -1.0, 1.0])) == 0.0


def test_a_step_without_rows_teaches_nothing() -> None:
    assert LearnedLength().observe({"power": 0.5}, outcome_of(GROUP.keep([]))) == {"power": 0.5}


def test_groups_too_large_for_r_are_refused() -> None:
    """One of 82 that differs: z = 9 = 1 / r, which leaves 1 + r z = 0 where it is the shortest."""
    for size, fits in ((81, True), (82, False)):
        scored = scored_of([[0.0]] * size, [0] * size, lengths=[1] + [2] * (size - 1))
        if fits:
            assert np.isfinite(factors(1.0, scored)).all()
            continue
        with pytest.raises(
            ValueError, match=r"weights\.learned_length\.r: wanted .* in groups of 82 below 0\.111"
        ):
            LearnedLength(r=1 / 9 + 1e-12)(tokens_of(scored), scored)


def test_its_power_is_in_the_run_s_memory_and_metrics() -> None:
    recipe = recipe_with(weights=(LearnedLength(power=0.25),))
    memory = recipe.first_memory()
    assert memory == {"weights.learned_length": {"power": 0.25}}
    assert recipe.noted(memory, CLOCK)["weights/length_power"] == 0.25
