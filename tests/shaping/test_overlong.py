"""DAPO's soft punishment of overlong responses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from g2rpo_fast.shaping import Overlong
from scored import recipe_with, scored_of


def test_penalty_grows_over_the_last_tokens() -> None:
    """L = 10 and C = 4: nothing up to 6 tokens, a quarter more for each further one, all when cut off."""
    lengths = [1, 6, 7, 8, 9, 10, 3]
    scored = scored_of([[1.0]] * 7, [0] * 7, lengths=lengths)
    scored = replace(scored, clock=replace(scored.clock, max_tokens=10))
    cut = replace(scored.rollouts[-1], finish_reason="length")
    scored = replace(scored, rollouts=(*scored.rollouts[:-1], cut))
    rewards = Overlong(share=0.4, weight=2.0)(scored)
    np.testing.assert_allclose(rewards.channel("overlong"), [0, 0, -0.25, -0.5, -0.75, -1, -1], atol=1e-12)
    np.testing.assert_allclose(rewards.total_R, [1, 1, 0.5, 0, -0.5, -1, -1], atol=1e-12)
    assert rewards.channels == ("channel 0", "overlong")
    assert rewards.accuracy_R is scored.rewards.accuracy_R
    with pytest.raises(ValueError, match="wanted a reward channel from channel 0, overlong, got 'lenght'"):
        rewards.channel("lenght")


def test_credit_begins_with_what_the_chain_leaves() -> None:
    scored = scored_of([[1.0], [0.0]], [0, 0], lengths=[10, 1])
    scored = replace(scored, clock=replace(scored.clock, max_tokens=10))
    assert recipe_with().shaped(scored) is scored
    shaped = recipe_with(shaping=(Overlong(),)).shaped(scored)
    assert shaped.rewards.total_R.tolist() == [0.0, 0.0]
    assert shaped.rollouts is scored.rollouts
