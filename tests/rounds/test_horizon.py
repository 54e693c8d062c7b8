"""Responses may be longer the further the run is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from g2rpo_fast.rollout.groups import plain_asks
from g2rpo_fast.rounds import Horizon
from g2rpo_fast.types import Prompt
from scored import CLOCK

PROMPT = Prompt(id="train:0", text="", token_ids=(1,), answer="", trace_ids=(7,) * 40)
ASKS = plain_asks([PROMPT], [2], max_tokens=50)


def test_the_limit_grows_in_stages() -> None:
    """3/5, 4/5 and 5/5 of 50 tokens, four steps each of 12."""
    clocks = [replace(CLOCK, step=step, total_steps=12) for step in range(13)]
    limits = [Horizon().first(ASKS, None, clock)[1].max_tokens for clock in clocks]
    assert limits == [30] * 4 + [40] * 4 + [50] * 5
    noted = Horizon().notes(None, replace(clocks[4], max_tokens=50))
    assert noted == {"rollout/horizon": 40.0}
    assert [ask.max_tokens for ask in Horizon(begin=1.0).first(ASKS, None, clocks[0])] == [50, 50]


def test_given_tokens_leave_room_for_one() -> None:
    guided = [replace(ask, given_ids=PROMPT.trace_ids) for ask in ASKS]
    assert Horizon().first(guided, None, replace(CLOCK, step=0))[0].max_tokens == 41


def test_settings_out_of_bounds_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rounds\.horizon\.stages: wanted at least 2, got 1"):
        Horizon(stages=1)
