"""Lengths of responses that were cut off early."""

from __future__ import annotations

import numpy as np
import pytest

from g2rpo_fast.forecast.lengths import Lengths, completed, late_hazard, shortened
from g2rpo_fast.types import Completion


def response(length: int, *, ended: bool) -> Completion:
    return Completion(
        token_ids=tuple(range(length)),
        logp=np.full(length, -0.5, np.float32),
        finish_reason="stop" if ended else "length",
        weight_version=3,
    )


def cut_at(most: int, lengths: list[int]) -> list[Completion]:
    return [response(min(n, most), ended=n <= most) for n in lengths]


def test_a_cut_does_not_hide_the_hazard():
    """Of geometric lengths with mean 50, cut at 10 tokens: only a fifth was seen to end."""
    lengths = np.random.default_rng(0).geometric(1 / 50, 20_000)
    seen = cut_at(10, lengths.tolist())
    assert late_hazard(seen) == pytest.approx(1 / 50, rel=0.06)
    known = np.array(Lengths.seen(seen, seed=0).known)
    assert known.mean() == pytest.approx(50, rel=0.06)


def test_responses_that_end_soon_or_late():
    """Half end within 8 tokens, half are geometric with mean 100; cut at 64. A hazard of all tokens would say
    less than 40."""
    rng = np.random.default_rng(1)
    lengths = [*rng.integers(1, 9, 4000).tolist(), *rng.geometric(1 / 100, 4000).tolist()]
    seen = cut_at(64, lengths)
    assert np.mean(Lengths.seen(seen, seed=0).known) == pytest.approx(np.mean(lengths), rel=0.06)


def test_nothing_ended_or_nothing_sampled():
    never = Lengths.seen([response(5, ended=False)] * 3, seed=0)
    assert never.draw(np.array([7, 9]), seed=0).tolist() == [7, 9]
    assert late_hazard([]) == 0.0


def test_lengths_of_a_known_mean():
    drawn_R = Lengths((), 20.0).draw(np.full(20_000, 10_000), seed=1)
    assert drawn_R.mean() == pytest.approx(20, rel=0.03)
    assert drawn_R.min() >= 1
    assert Lengths((), 20.0).draw(np.full(100, 4), seed=1).max() == 4


def test_completed_keeps_what_was_seen():
    """A row that ended, one that was cut, one that was not sampled."""
    seen = [response(3, ended=True), response(4, ended=False)]
    lengths, limit_R = Lengths((3.0, float("inf"))), np.array([20, 20, 6])
    made = completed(seen, lengths, limit_R, vocabulary=11, seed=0)
    assert made[0].token_ids == seen[0].token_ids
    assert made[1].token_ids[:4] == seen[1].token_ids
    assert [len(c.token_ids) for c in made[:2]] == [3, 20]
    assert len(made[2].token_ids) in (3, 6)
    assert [c.finish_reason for c in made[:2]] == ["stop", "length"]
    assert all(len(c.logp) == len(c.token_ids) for c in made)
    assert all(0 <= i < 11 for c in made for i in c.token_ids)
    again = completed(seen, lengths, limit_R, vocabulary=11, seed=0)
    assert [c.token_ids for c in again] == [c.token_ids for c in made]
    short = completed(seen, Lengths((), 1.0), limit_R, vocabulary=11, seed=0)
    assert [len(c.token_ids) for c in short] == [1, 1, 1]


def test_shortened():
    whole = response(3, ended=True)
    short, long = shortened([whole, response(9, ended=True)], 4)
    assert short is whole
    assert (long.token_ids, len(long.logp), long.finish_reason) == ((0, 1, 2, 3), 4, "length")
