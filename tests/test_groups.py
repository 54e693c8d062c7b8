"""What an engine is asked for a step: seeds, and prompts that occur in it more than once."""

from __future__ import annotations

from pathlib import Path

import pytest

from g2rpo_fast.assemble import assemble
from g2rpo_fast.rollout.groups import request_seed, requests_of
from g2rpo_fast.steps import next_prompts, sample
from g2rpo_fast.types import Prompt, Request
from runs import tiny_config

PROMPTS = [Prompt(id=f"train:{i}", text="", token_ids=(5, i), trace_ids=(7, 8), answer="") for i in range(3)]


def asked(order: list[int], *, step: int = 1) -> list[list[Request]]:
    """By group."""
    prompts = [PROMPTS[i] for i in order]
    requests = requests_of(prompts, [[1, 0, 0, 0]] * len(order), max_tokens=9, seed=3, step=step)
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


def test_a_step_of_fewer_prompts_than_it_wants_has_no_group_twice(tmp_path: Path) -> None:
    config = tiny_config(
        tmp_path,
        run={"prompts_per_step": 6, "steps": 1},
        embedded={"train_rows": 3, "eval_rows": 2, "warm_start_steps": 1},
        guidance={"enabled": False},
    )
    parts = assemble(config, lambda line: None)
    completions = sample(parts, parts.state).completions
    assert len({prompt.id for prompt in next_prompts(parts, parts.state)}) == 3
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
