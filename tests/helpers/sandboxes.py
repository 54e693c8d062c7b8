"""Whether this machine can sandbox programs, and judgements of some."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest

from g2rpo_fast.rewards import RewardConfig
from g2rpo_fast.rewards.code.reward import CodeReward, limits_of
from g2rpo_fast.rewards.code.sandbox import Limits, Task, Verdict, judge

PATIENT_S = 600.0
"""For a program that ends by itself: a busy machine is no failure."""
LIMITS = limits_of(RewardConfig(code_cpu_s=60))


@functools.cache
def why_not() -> str:
    """ "" where it can."""
    try:
        CodeReward(RewardConfig())
    except ValueError as error:
        return str(error)
    return ""


def needs_sandbox() -> None:
    if why_not():
        pytest.skip(why_not())


def verdict_of(
    program: str, test: str, *, timeout_s: float = PATIENT_S, limits: Limits = LIMITS, **changed: int
) -> Verdict:
    """Of a program whose function is `f`."""
    task = Task(program=program, entry="f", problem="", test=test)
    return judge(task, replace(limits, **changed), timeout_s)
