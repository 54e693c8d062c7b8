"""Rounds of a step: hints for prompts that nobody solved, and chains of several pieces."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from g2rpo_fast.pieces import Memory, More, Outcome, Round, Scored
from g2rpo_fast.rollout.groups import plain_asks, requests_of
from g2rpo_fast.rounds import (
    HintOnFailure,
    Resample,
    first_round,
    next_round,
    settled,
)
from g2rpo_fast.types import Ask
from scored import CLOCK, outcome_of, recipe_with, scored_of

HINTED = (8, 8, 1, 2)


def with_hints(scored: Scored, ids: tuple[tuple[int, ...], ...] = (HINTED,)) -> Scored:
    rollouts = tuple(replace(r, prompt=replace(r.prompt, hinted_ids=ids)) for r in scored.rollouts)
    return replace(scored, rollouts=rollouts, clock=replace(CLOCK, max_tokens=9))


def none_more(count: int) -> list[Ask]:
    raise AssertionError("no prompt is asked for")


def test_groups_without_a_success_are_asked_again_with_a_hint() -> None:
    scored = with_hints(scored_of([[0.0], [0.0], [1.0], [0.0], [1.0], [1.0]], [0, 0, 1, 1, 2, 2]))
    asks = next_round((HintOnFailure(),), scored, {}, none_more)
    assert [(a.group, a.member, a.round, a.source) for a in asks] == [
        (3, 0, 1, "off_policy"),
        (3, 1, 1, "off_policy"),
    ]
    assert {(a.sampling_prompt_ids, a.training_prompt_ids) for a in asks} == {(HINTED, (1, 2))}
    assert {(a.prompt.id, a.max_tokens, a.hint_level) for a in asks} == {("train:0", 9, 1.0)}
    first = requests_of(plain_asks([asks[0].prompt], [2], max_tokens=9), seed=0, step=4)
    assert not {r.seed for r in requests_of(asks, seed=0, step=4)} & {r.seed for r in first}


def test_there_is_one_round_of_hints_and_none_without_a_hint() -> None:
    failed = with_hints(scored_of([[0.0], [0.0]], [0, 0]))
    later = replace(failed, rollouts=tuple(replace(r, round=1) for r in failed.rollouts))
    assert next_round((HintOnFailure(),), later, {}, none_more) == []
    for ids in ((), ((),)):
        assert next_round((HintOnFailure(),), with_hints(failed, ids), {}, none_more) == []


def test_groups_that_teach_stay() -> None:
    rewards = [[0.0], [0.0], [1.0], [0.0], [1.0], [1.0], [0.0], [1.0]]
    scored = with_hints(scored_of(rewards, [0, 0, 1, 1, 2, 2, 3, 3]))
    kept = settled((HintOnFailure(),), scored, {})
    assert kept.group_R.tolist() == [1, 1, 3, 3]
    assert kept.rewards.total_R.tolist() == [1.0, 0.0, 0.0, 1.0]
    nothing = replace(scored.rewards, accuracy_R=np.full(8, np.nan))
    assert settled((HintOnFailure(),), replace(scored, rewards=nothing), {}).rollouts == ()


def test_groups_without_a_signal_are_replaced_until_there_are_enough() -> None:
    scored = scored_of([[0.0], [0.0], [1.0], [0.0], [1.0], [1.0]], [0, 0, 1, 1, 2, 2])
    asked: list[int] = []

    def more(count: int) -> list[Ask]:
        asked.append(count)
        return plain_asks([scored.rollouts[0].prompt] * count, [2] * count, max_tokens=9, first_group=3)

    asks = next_round((Resample(),), scored, {}, more)
    assert (asked, {ask.group for ask in asks}, {ask.round for ask in asks}) == ([2], {3, 4}, {1})
    later = scored_of([[0.0], [0.0], [1.0], [0.0], [0.0], [1.0], [2.0], [1.0]], [0, 0, 1, 1, 3, 3, 4, 4])
    rows = tuple(replace(r, round=int(r.group > 2)) for r in later.rollouts)
    later = replace(later, rollouts=rows)
    assert settled((Resample(),), later, {}).group_R.tolist() == [1, 1, 3, 3]  # as many as there were first
    assert next_round((Resample(),), later, {}, more) == []
    few = replace(later, rewards=replace(later.rewards, total_R=np.zeros(8)))
    assert next_round((Resample(most=2),), few, {}, more) == []
    assert {ask.round for ask in next_round((Resample(most=3),), few, {}, more)} == {2}
    assert settled((Resample(),), few, {}).rollouts == ()


def test_enough_groups_with_a_signal_may_be_fewer_than_all() -> None:
    """Of five groups two of the four drawn first differ, then the fifth: silent ones fill up, in order."""
    rewards = [[0.0], [0.0], [1.0], [0.0], [1.0], [1.0], [0.0], [1.0], [2.0], [1.0]]
    scored = scored_of(rewards, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4])
    rows = tuple(replace(r, round=int(r.group == 4)) for r in scored.rollouts)
    later = replace(scored, rollouts=rows)
    first = later.keep(range(8))
    assert next_round((Resample(enough=0.5),), first, {}, none_more) == []
    assert settled((Resample(enough=0.5),), first, {}).group_R.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    asked: list[int] = []
    assert next_round((Resample(enough=0.6),), first, {}, lambda count: asked.append(count) or []) == []
    assert asked == [1]
    assert settled((Resample(enough=0.6),), later, {}).group_R.tolist() == [0, 0, 1, 1, 3, 3, 4, 4]
    assert settled((Resample(),), later, {}).group_R.tolist() == [1, 1, 3, 3, 4, 4]


@dataclass(frozen=True, kw_only=True)
class Counting(Round):
    """Counts the steps, asks for one more prompt, keeps the first rows."""

    use = "counting"
    repeats = True

    def memory(self) -> Memory:
        return {"steps": 0}

    def again(self, scored: Scored, memory: Memory, more: More) -> list[Ask]:
        return more(1) if scored.num_groups < 3 + memory["steps"] else []

    def settle(self, scored: Scored, memory: Memory) -> Scored:
        return scored.keep(range(2))

    def observe(self, memory: Memory, outcome: Outcome) -> Memory:
        return {"steps": memory["steps"] + len(outcome.scored.rollouts)}


@dataclass(frozen=True, kw_only=True)
class Shorter(Round):
    """Takes a token from every response."""

    use = "shorter"

    def first(self, asks, memory, clock):
        return [replace(ask, max_tokens=ask.max_tokens - 1) for ask in asks]


def test_a_chain_runs_each_piece_with_its_own_memory() -> None:
    chain = (Shorter(), Counting(), HintOnFailure())
    recipe = recipe_with(rounds=chain)
    memory = recipe.first_memory()
    assert memory == {"counting": {"steps": 0}}
    scored = with_hints(scored_of([[0.0], [0.0], [1.0], [0.0]], [0, 0, 1, 1]))
    asks = plain_asks([scored.rollouts[0].prompt], [2], max_tokens=5)
    assert [ask.max_tokens for ask in first_round(chain, asks, memory, CLOCK)] == [4, 4]
    taken: list[int] = []

    def more(count: int) -> list[Ask]:
        taken.append(count)
        return asks

    assert [a.round for a in next_round(chain, scored, memory, more)] == [1, 1]
    assert taken == [1]
    after = recipe.observed(memory, outcome_of(scored))
    assert after == {"counting": {"steps": 4}}
    assert {ask.source for ask in next_round(chain, scored, {"counting": {"steps": -1}}, more)} == {
        "off_policy"
    }
    assert settled(chain, scored, memory).rollouts == ()  # the two rows that Counting keeps are all wrong
