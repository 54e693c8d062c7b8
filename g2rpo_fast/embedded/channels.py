"""Reward channels of the embedded task, beside `exact_match`: what a response gets right of the way.

    [reward]
    functions = ["exact_match", "g2rpo_fast.embedded.channels:progress"]
    weights = { "g2rpo_fast.embedded.channels:progress" = 0 }      only for a piece that reads it

Each is a reward function (response, answer, rollout) -> number in [0, 1]; pieces may name one by the
function's name alone. The format of a response, thought or none, is `format` with
format_pattern = '([0-9]>[0-9]+(;[0-9]>[0-9]+)*)?#[0-9]+'.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from g2rpo_fast.embedded.task import ANSWER_MARKER, selection_sort_row
from g2rpo_fast.types import Rollout


def progress(response: str, answer: str, rollout: Rollout) -> float:
    """The share of the trace's steps that are right before the first wrong one."""
    wanted = selection_sort_row(_digits(rollout))["trace"].split(";")
    written = _thought(response).split(";")
    pairs = takewhile(lambda pair: pair[0] == pair[1], zip(wanted, written))
    return sum(1 for _ in pairs) / len(wanted)


def right_digits(response: str, answer: str, rollout: Rollout) -> float:
    """The share of the answer's digits that stand in their place; more digits than wanted earn nothing."""
    final = _final(response)
    same = sum(one == other for one, other in zip(final, answer))
    return same / len(answer) if len(final) <= len(answer) else 0.0


def right_steps(items: Sequence[str], answer: str, rollout: Rollout) -> list[float]:
    """For a piece that pays the items of a list: of each step, 1 where it is the trace's step of its number.

    The steps are the items between ";", the last of them with the answer behind it.
    """
    row = selection_sort_row(_digits(rollout))
    wanted = row["trace"].split(";")
    wanted[-1] += ANSWER_MARKER + row["answer"]
    return [float(item in wanted[place : place + 1]) for place, item in enumerate(items)]


def permutation(response: str, answer: str, rollout: Rollout) -> float:
    """1 where the final answer has the prompt's digits, in whatever order."""
    return float(sorted(_final(response)) == sorted(_digits(rollout)))


def faithful(response: str, answer: str, rollout: Rollout) -> float:
    """1 where the final answer is what the steps written come to, right or wrong; 0 without steps."""
    steps = [step.split(">") for step in _thought(response).split(";")]
    if any(len(step) != 2 for step in steps):
        return 0.0
    return float("".join(smallest for smallest, _ in steps) + steps[-1][1] == _final(response) != "")


def _digits(rollout: Rollout) -> str:
    return rollout.prompt.text.rstrip(":")


def _thought(response: str) -> str:
    """Before the last marker; all where there is none."""
    before, marker, after = response.rpartition(ANSWER_MARKER)
    return before if marker else after


def _final(response: str) -> str:
    """After the last marker; nothing where there is none."""
    _, marker, after = response.rpartition(ANSWER_MARKER)
    return after if marker else ""
