"""Lengths of responses that were cut off early."""

from __future__ import annotations

import numpy as np
import pytest

from g2rpo_fast.forecast.lengths import completed, draw_lengths, hazard, shortened
from g2rpo_fast.types import Completion


def response(length: int, *, ended: bool) -> Completion:
    return Completion(
        token_ids=tuple(range(length)),
        logp=np.full(length, -0.5, np.float32),
        finish_reason="stop" if ended else "length",
        weight_version=3,
    )


def test_a_cut_does_not_hide_the_hazard():
    """Of geometric lengths with mean 50, cut at 10 tokens: only a fifth was seen to end."""
    rng = np.random.default_rng(0)
    lengths = rng.geometric(1 / 50, 20_000)
    seen = [response(min(n, 10), ended=bool(n <= 10)) for n in lengths.tolist()]
    assert hazard(seen) == pytest.approx(1 / 50, rel=0.05)


def test_nothing_ended_or_nothing_sampled():
    assert hazard([response(5, ended=False)] * 3) == 0.0
    assert hazard([]) == 0.0
    assert draw_lengths(np.array([7, 9]), 0.0, seed=0).tolist() == [7, 9]


def test_drawn_lengths_have_the_mean_of_the_hazard():
    drawn_R = draw_lengths(np.full(20_000, 10_000), 0.05, seed=1)
    assert drawn_R.mean() == pytest.approx(20, rel=0.03)
    assert drawn_R.min() >= 1
    assert draw_lengths(np.full(100, 4), 0.05, seed=1).max() == 4


def test_completed_keeps_what_was_seen():
    seen = [response(3, ended=True), response(4, ended=False)]
    made = completed(seen, np.array([20, 20, 6]), 0.0, vocabulary=11, seed=0)
    assert made[0] is seen[0]
    assert made[1].token_ids[:4] == seen[1].token_ids
    assert [len(c.token_ids) for c in made] == [3, 20, 6]
    assert [c.finish_reason for c in made] == ["stop", "length", "length"]
    assert all(len(c.logp) == len(c.token_ids) for c in made)
    assert all(0 <= i < 11 for c in made[1:] for i in c.token_ids)
    again = completed(seen, np.array([20, 20, 6]), 0.0, vocabulary=11, seed=0)
    assert [c.token_ids for c in again] == [c.token_ids for c in made]


def test_shortened():
    whole = response(3, ended=True)
    short, long = shortened([whole, response(9, ended=True)], 4)
    assert short is whole
    assert (long.token_ids, len(long.logp), long.finish_reason) == ((0, 1, 2, 3), 4, "length")
