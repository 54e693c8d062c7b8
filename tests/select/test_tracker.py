"""The tracker: whom it draws, what it remembers, and what it gives as a baseline."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from g2rpo_fast.config import config_from_dict
from g2rpo_fast.credit import TrackerBaseline, Whiten, advantages
from g2rpo_fast.pieces import PromptStore
from g2rpo_fast.select import Tracker
from g2rpo_fast.select.tracker import RIGHT, WRONG
from g2rpo_fast.types import Prompt
from scored import CLOCK, outcome_of, scored_of

PROMPTS = [Prompt(id=f"train:{i}", text="", token_ids=(i,), answer="") for i in range(40)]


def store_of(right: list[float], wrong: list[float]) -> PromptStore:
    ids = [prompt.id for prompt in PROMPTS[: len(right)]]
    return PromptStore.of(ids, Tracker().columns()).put(**{RIGHT: np.array(right), WRONG: np.array(wrong)})


def test_a_prompt_s_counts_decay_only_when_it_is_drawn() -> None:
    """8 and 4 of 8 offline successes: Beta(7.5556, .4444) and (4, 4); then a wrong one, a half right one."""
    n = 1 / (1 - 0.875)
    store = store_of([n * 8.5 / 9, n * 4.5 / 9, 3.0], [n * 0.5 / 9, n * 4.5 / 9, 1.0])
    np.testing.assert_allclose(store.columns[RIGHT], [7.5556, 4, 3], atol=5e-5)
    after = Tracker().learned(store, outcome_of(scored_of([[0.0], [0.5]], [0, 1])))
    np.testing.assert_allclose(after.columns[RIGHT], [0.875 * 68 / 9, 4.0, 3.0], rtol=1e-12)
    np.testing.assert_allclose(after.columns[WRONG], [0.875 * 4 / 9 + 1, 4.0, 1.0], rtol=1e-12)
    first = Tracker().columns()
    assert (first[RIGHT], first[WRONG]) == (0.5, 0.5)


def test_rows_without_a_reward_or_with_help_teach_nothing() -> None:
    scored = scored_of([[1.0], [float("nan")], [1.0]], [0, 0, 0])
    guided, *others = scored.rollouts
    scored = replace(scored, rollouts=(replace(guided, guidance_len=1), *others))
    after = Tracker(rho=0.5).learned(store_of([2.0], [2.0]), outcome_of(scored))
    assert (after.columns[RIGHT].tolist(), after.columns[WRONG].tolist()) == ([2.0], [1.0])


def test_every_rollout_is_of_another_prompt_and_the_draw_repeats() -> None:
    store = store_of([0.5] * 40, [0.5] * 40)
    chosen = Tracker().choose(PROMPTS, store, CLOCK, count=4, size=6)
    assert [each.size for each in chosen] == [1] * 24
    assert len({each.prompt.id for each in chosen}) == 24
    assert chosen == Tracker().choose(PROMPTS, store, replace(CLOCK, cursor=99), count=4, size=6)
    assert chosen != Tracker().choose(PROMPTS, store, replace(CLOCK, step=4), count=4, size=6)
    few = Tracker().choose(PROMPTS[:2], store_of([1.0] * 2, [1.0] * 2), CLOCK, count=5, size=1)
    assert sorted(each.prompt.id for each in few) in (
        ["train:0"] * 3 + ["train:1"] * 2, ["train:0"] * 2 + ["train:1"] * 3,
    )  # fmt: skip


def test_uncertain_prompts_are_drawn_by_their_weight() -> None:
    """v = 1/2 has weight .55, v = 1 the .05 of exploration: 11 of 12 first draws."""
    store = store_of([1.0, 1.0], [1.0, 0.0])
    drawn = [
        Tracker().choose(PROMPTS[:2], store, replace(CLOCK, step=s), count=1, size=1) for s in range(600)
    ]
    share = np.mean([each[0].prompt.id == "train:0" for each in drawn])
    assert abs(share - 11 / 12) < 4 * np.sqrt(11 / 144 / 600)


def test_the_baseline_is_what_was_expected() -> None:
    scored = scored_of([[1.0], [0.0], [1.0]], [0, 1, 2])
    store = store_of([4.0, 4.0, 3.0], [4.0, 12.0, 1.0])
    raw = TrackerBaseline()(scored.rewards.total_R, scored, store)
    np.testing.assert_allclose(raw, [0.5, -0.25, 0.25])
    whitened = advantages((TrackerBaseline(), Whiten(eps=1e-8)), scored, store)
    np.testing.assert_allclose(whitened, (raw - 1 / 6) / np.std(raw, ddof=1), rtol=1e-6)
    assert (whitened != 0).all()  # groups of one, and none is silent


def test_rewards_out_of_its_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"tracker_baseline: wanted rewards in \[0, 1\].*, got 1\.5"):
        TrackerBaseline()(np.array([1.5]), scored_of([[1.5]], [0]), store_of([1.0], [1.0]))


def test_a_baseline_wants_its_tracker() -> None:
    assert TrackerBaseline.reads == Tracker().columns().keys()
    chain = {"credit": [{"use": "tracker_baseline"}], "guidance": {"enabled": False}}
    with pytest.raises(
        ValueError, match=r"credit: wanted with tracker_baseline .* tracked_right.* got .* vade"
    ):
        config_from_dict({**chain, "selection": {"use": "vade"}})
    assert config_from_dict({**chain, "selection": {"use": "tracker"}}).selection == Tracker()
