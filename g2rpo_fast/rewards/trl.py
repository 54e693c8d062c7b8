"""Reward functions written for TRL's GRPOTrainer, called as it calls them.

    reward(prompts, completions, completion_ids, trainer_state, **columns) -> list[float | None]

All by keyword, a list entry for each rollout (TRL 1.16, `GRPOTrainer._calculate_rewards`). Where the data's
prompt is a list of messages, so is each completion. Columns are those of the data, but for `prompt`,
`completion` and `completion_ids`; the answer's is text, a number as it was written. A function that takes no
`**kwargs` is given what it names.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from g2rpo_fast.types import Rollout

OFFERED = ("prompts", "completions", "completion_ids", "trainer_state")
SIGNS = frozenset({"prompts", "completions", "completion_ids"})
"""Parameters by which such a function is known."""
NOT_COLUMNS = (*OFFERED, "prompt", "completion")
NOT_HERE = ("log_extra", "log_metric", "environments")
"""What TRL offers too; a function that cannot do without is refused."""


@dataclass(kw_only=True)
class Place:
    """Where a run stands while it scores, for `trainer_state`."""

    step: int = 0
    total_steps: int = 0


def is_trl(function: Callable[..., Any]) -> bool:
    """Whether a function is of TRL's kind: one of its parameters is of `SIGNS`, and it has no `scope`."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # some functions written in C tell nothing
        return False
    return getattr(function, "scope", None) is None and bool(SIGNS & set(parameters))


class TrlReward:
    """Such a function as one of scope "batch"."""

    scope = "batch"

    def __init__(self, name: str, function: Callable[..., Any], place: Place) -> None:
        """Raises ValueError for one that wants what is not offered."""
        parameters = inspect.signature(function).parameters.values()
        self.function = function
        self.place = place
        self.takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        self.names = [parameter.name for parameter in named]
        self.required = [parameter.name for parameter in named if parameter.default is parameter.empty]
        refused = [name for name in self.required if name in NOT_HERE]
        refused += [p.name for p in parameters if p.kind is p.POSITIONAL_ONLY]
        if refused or isinstance(function, type):
            raise ValueError(
                f"reward.functions: wanted a function of TRL's kind that takes {', '.join(OFFERED)} and "
                f"columns of the data by keyword, got {name!r} with {inspect.signature(function)}"
            )

    def __call__(self, responses: Sequence[str], answers: object, rollouts: Sequence[Rollout]) -> Any:
        from transformers import TrainerState  # late: it takes a second

        columns = dict.fromkeys(name for rollout in rollouts for name in rollout.prompt.row)
        problems = [rollout.prompt.problem for rollout in rollouts]
        offered = {name: [rollout.prompt.row.get(name) for rollout in rollouts] for name in columns}
        offered = {name: values for name, values in offered.items() if name not in NOT_COLUMNS}
        offered |= {
            "prompts": [r.prompt.text if given is None else given for r, given in zip(rollouts, problems)],
            "completions": [_completion(*pair) for pair in zip(responses, problems)],
            "completion_ids": [list(rollout.response_ids) for rollout in rollouts],
            "trainer_state": TrainerState(global_step=self.place.step, max_steps=self.place.total_steps),
        }
        return self.function(
            **{name: value for name, value in offered.items() if self.takes_all or name in self.names}
        )

    def check_reference(self, answer: str, row: Mapping[str, Any]) -> str | None:
        """A column that the function cannot do without and the row does not have."""
        missing = [name for name in self.required if name not in (*OFFERED, *row)]
        return f"the row has no column {missing[0]!r}, which the function takes" if missing else None


def _completion(text: str, problem: object) -> Any:
    conversation = problem is not None and not isinstance(problem, str)
    return [{"role": "assistant", "content": text}] if conversation else text
