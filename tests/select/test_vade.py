"""VADE: whom it chooses, and what it remembers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from g2rpo_fast.order import Order
from g2rpo_fast.pieces import Clock, PromptStore
from g2rpo_fast.select import SELECTIONS, InOrder, Vade
from g2rpo_fast.types import Prompt
from scored import CLOCK, outcome_of, scored_of

PROMPTS = [Prompt(id=f"train:{i}", text="", token_ids=(i,), answer="") for i in range(5)]


def store_of(alpha: list[float], beta: list[float]) -> PromptStore:
    ids = [prompt.id for prompt in PROMPTS[: len(alpha)]]
    return PromptStore.of(ids, Vade().columns()).put(alpha=np.array(alpha), beta=np.array(beta))


def test_memory_is_the_papers_worked_example() -> None:
    """Figure of arXiv 2511.18902: one of 8 and four of 8 were right, the third prompt was not chosen."""
    rewards = [[float(i < 1)] for i in range(8)] + [[float(i < 4)] for i in range(8)]
    after = Vade().learned(
        store_of([0.1, 2.7, 9.0], [8.4, 5.3, 1.0]), outcome_of(scored_of(rewards, [0] * 8 + [1] * 8))
    )
    np.testing.assert_allclose(after.columns["alpha"], [1.02, 4.54, 8.991], rtol=1e-12)
    np.testing.assert_allclose(after.columns["beta"], [8.68, 5.06, 0.999], rtol=1e-12)


def test_only_what_the_model_does_alone_counts() -> None:
    scored = scored_of([[1.0], [1.0], [0.0], [float("nan")]], [0, 0, 0, 0])
    guided, hinted, *plain = scored.rollouts
    rows = (replace(guided, guidance_len=1), replace(hinted, sampling_prompt_ids=(9, 9)), *plain)
    accuracy_R = np.array([1.0, 1.0, 0.0, np.nan])
    scored = replace(scored, rollouts=rows, rewards=replace(scored.rewards, accuracy_R=accuracy_R))
    after = Vade(decay=0.5).learned(store_of([2.0, 2.0], [2.0, 2.0]), outcome_of(scored))
    assert after.columns["alpha"].tolist() == [1.0, 2.0 * 0.999]
    assert after.columns["beta"].tolist() == [2.0, 2.0 * 0.999]


def test_prompts_of_middling_difficulty_are_chosen() -> None:
    sure = store_of([1e6, 1e6, 5e5, 0.0, 1e6], [2e6, 0.0, 5e5, 1e6, 1.9e6])  # p = 1/3, 1, 1/2, 0, .345
    for step in range(5):
        chosen = Vade().choose(PROMPTS, sure, replace(CLOCK, step=step), count=3, size=4)
        assert {c.prompt.id for c in chosen[:2]} == {"train:0", "train:4"}
        assert (chosen[2].prompt.id, chosen[2].size) == ("train:2", 4)


def test_draws_repeat_and_change_with_step_and_seed() -> None:
    store = store_of([0.0] * 5, [0.0] * 5)

    def ids(**clock: int) -> list[str]:
        chosen = Vade().choose(PROMPTS, store, replace(CLOCK, **clock), count=5, size=1)
        return [c.prompt.id for c in chosen]

    assert ids() == ids(cursor=99)
    assert len({tuple(ids(step=step)) for step in range(8)}) > 3
    assert len({tuple(ids(seed=seed)) for seed in range(8)}) > 3
    assert sorted(ids()) == [prompt.id for prompt in PROMPTS]


def test_more_groups_than_prompts_take_some_again() -> None:
    chosen = Vade().choose(PROMPTS[:2], store_of([0.0] * 2, [0.0] * 2), CLOCK, count=5, size=1)
    assert sorted(c.prompt.id for c in chosen) in (
        ["train:0"] * 3 + ["train:1"] * 2,
        ["train:0"] * 2 + ["train:1"] * 3,
    )


def test_in_order_follows_the_cursor() -> None:
    store = PromptStore.of([prompt.id for prompt in PROMPTS], InOrder().columns())
    clock = Clock(step=7, total_steps=9, seed=1, cursor=3, order=Order(shuffle=False))
    chosen = InOrder().choose(PROMPTS, store, clock, count=4, size=6)
    assert [(c.prompt.id, c.size) for c in chosen] == [(f"train:{i}", 6) for i in (3, 4, 0, 1)]
    assert InOrder().learned(store, outcome_of(scored_of([[1.0]], [0]))) is store


def test_store_survives_as_arrays_and_follows_its_prompts() -> None:
    store = store_of([1.5, 2.5, 3.5], [0.25, 0.5, 0.75])
    first = PromptStore.of(["train:2", "train:9", "train:0"], {"alpha": 0.0, "other": 7.0})
    again = first.restored(store.to_arrays())
    assert again.columns["alpha"].tolist() == [3.5, 0.0, 1.5]
    assert again.columns["other"].tolist() == [7.0, 7.0, 7.0]
    assert again.places([PROMPTS[0], PROMPTS[2]]).tolist() == [2, 0]
    empty = PromptStore.of(["train:0"], {})
    assert empty.to_arrays() == {}
    assert first.restored({}) is first


@pytest.mark.parametrize(("key", "value"), [("decay", 1.5), ("rest", -0.1), ("decay", "much")])
def test_settings_out_of_bounds_are_refused(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"selection\.vade\.{key}: wanted"):
        SELECTIONS["vade"](**{key: value})
