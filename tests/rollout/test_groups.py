"""What an engine is asked for a step: seeds, and prompts that occur in it more than once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from g2rpo_fast.assemble import assemble
from g2rpo_fast.gather import sample
from g2rpo_fast.rollout.groups import plain_asks, request_seed, requests_of, rollouts_of
from g2rpo_fast.types import Ask, Completion, Prompt, Request, Sampling
from runs import tiny_config

PROMPTS = [Prompt(id=f"train:{i}", text="", token_ids=(5, i), trace_ids=(7, 8), answer="") for i in range(3)]


def asked(order: list[int], *, step: int = 1) -> list[list[Request]]:
    """By group."""
    prompts = [PROMPTS[i] for i in order]
    requests = requests_of(plain_asks(prompts, [4] * len(order), max_tokens=9), seed=3, step=step)
    return [requests[4 * group : 4 * group + 4] for group in range(len(order))]


def test_every_group_of_a_prompt_is_drawn_from_seeds_of_its_own() -> None:
    groups = asked([0, 1, 0, 2, 1, 0])
    assert len({request.seed for group in groups for request in group}) == 24
    assert [request.prompt_ids for request in groups[2]] == [request.prompt_ids for request in groups[0]]
    assert groups == asked([0, 1, 0, 2, 1, 0])
    later = asked([0, 0, 0], step=2)
    assert not {r.seed for group in later for r in group} & {r.seed for group in groups for r in group}


def test_seeds_depend_on_the_prompt_and_its_count_not_on_the_place() -> None:
    zero, one, again, two = asked([0, 1, 0, 2])
    assert asked([2, 0, 0, 1]) == [two, zero, again, one]
    assert [r.seed for r in one] == [request_seed(3, 1, "train:1", member) for member in range(4)]
    assert request_seed(3, 1, "train:1", 0) == 4311531710224152881


def test_a_later_round_draws_anew_and_responses_begin_with_what_is_given() -> None:
    first = plain_asks(PROMPTS[:1], [2], max_tokens=9)
    again = [replace(ask, round=1, given_ids=(7, 8), sampling_prompt_ids=(4, 5)) for ask in first]
    one, two, three, four = requests_of([*first, *again], seed=3, step=1)
    assert len({one.seed, two.seed, three.seed, four.seed}) == 4
    assert (one.prompt_ids, one.max_tokens, one.guidance_len) == ((5, 0), 9, 0)
    assert (three.prompt_ids, three.max_tokens, three.guidance_len) == ((4, 5, 7, 8), 7, 2)
    assert three.seed == request_seed(3, 1, "train:0", 0, sampling_round=1)


def test_rollouts_keep_what_they_were_asked_with() -> None:
    ask = Ask(
        prompt=PROMPTS[1],
        group=4,
        member=2,
        round=1,
        sampling_prompt_ids=(9, 9, 5, 1),
        training_prompt_ids=(5, 1),
        given_ids=(7,),
        max_tokens=5,
        hint_level=2.0,
        source="off_policy",
    )
    done = Completion(
        token_ids=(3, 2), logp=np.array([-1, -2], np.float32), finish_reason="stop", weight_version=6
    )
    (got,) = rollouts_of([ask], [done], sampling=Sampling(), decode=lambda ids: str(ids))
    assert (got.group, got.member, got.round, got.hint_level, got.source) == (4, 2, 1, 2.0, "off_policy")
    assert (got.training_prompt_ids, got.sampling_prompt_ids) == ((5, 1), (9, 9, 5, 1))
    assert (got.response_ids, got.guidance_len, got.loss_mask.tolist()) == ((7, 3, 2), 1, [False, True, True])
    np.testing.assert_array_equal(got.rollout_logp, np.array([np.nan, -1, -2], np.float32))


def test_a_step_of_fewer_prompts_than_it_wants_has_no_group_twice(tmp_path: Path) -> None:
    config = tiny_config(
        tmp_path,
        run={"prompts_per_step": 6, "steps": 1},
        embedded={"train_rows": 3, "eval_rows": 2, "warm_start_steps": 1},
        guidance={"enabled": False},
    )
    parts = assemble(config, lambda line: None)
    sampled = sample(parts, parts.state)
    assert (sampled.num_prompts, len({ask.prompt.id for ask in sampled.asks})) == (6, 3)
    completions = sampled.completions
    groups = {tuple(c.token_ids for c in completions[6 * group : 6 * group + 6]) for group in range(6)}
    assert len(groups) == 6


@pytest.mark.parametrize("column", ["trace", None])
def test_plain_grpo_needs_no_traces(tmp_path: Path, column: str | None) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("".join(f'{{"prompt": "{i}+1=", "answer": "{i + 1}"}}\n' for i in range(8)))
    sections = {
        "model": {"path": "untrained"},
        "data": {"path": str(data), "trace_column": column},
        "rollout": {"group_size": 2, "max_tokens": 20},
    }
    config = tiny_config(tmp_path / "plain", guidance={"enabled": False}, **sections)
    assert len(assemble(config, lambda line: None).prompts.prompts) == 8
    if column is not None:
        with pytest.raises(ValueError, match=r"no column 'trace'.*\(data\.trace_column\)"):
            assemble(tiny_config(tmp_path / "guided", **sections), lambda line: None)
