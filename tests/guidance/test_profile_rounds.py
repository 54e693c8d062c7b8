"""The guidance profile's cost is bounded: rounds of prompts, until it is clear or has cost a step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from g2rpo_fast.assemble import assemble
from g2rpo_fast.evaluate import PROFILE_ROUND, guidance_profile
from g2rpo_fast.guidance import is_clear
from runs import quiet, tiny_config


def test_a_profile_ends_with_the_round_that_used_up_its_budget(
    tmp_path: Path,
) -> None:
    parts = assemble(tiny_config(tmp_path), quiet)

    def profile(prompts: int, budget: int):
        config = replace(parts.config.evaluate, profile_prompts=prompts, profile_samples=1)
        return guidance_profile(parts.sampler, parts.prompts.prompts, config, reserve=8, budget=budget)

    short, long = profile(20, budget=1), profile(20, budget=10**9)
    assert [point.num for point in short] == [PROFILE_ROUND] * 5
    assert short == profile(PROFILE_ROUND, budget=10**9)
    assert is_clear(long) or [point.num for point in long] == [20] * 5
    parts.close()
