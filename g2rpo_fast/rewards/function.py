"""What a reward function is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

Scope = Literal["rollout", "group", "batch"]
ARGUMENTS: dict[Scope, str] = {
    "rollout": "(response, answer, rollout) of one rollout",
    "group": "(responses, answer, rollouts) of one group",
    "batch": "(responses, answers, rollouts) of all rollouts",
}

RewardFunction = Callable[[Any, Any, Any], Any]
"""(response text, reference answer, everything known of the rollout) -> a finite number, None where the
channel does not apply to the row, or an awaitable of either (an async function).

An attribute `scope = "group"` makes it (responses, answer, rollouts) of a whole group -> a sequence of
numbers and None, one a rollout; `scope = "batch"` (responses, answers, rollouts) of all rollouts of a step or
an evaluation. Where a step samples in rounds, it is called again when its rollouts have become more. One
without a `scope` that has a parameter named prompts, completions or completion_ids is of TRL's kind (`trl`).

Arrays of the rollout are read-only; its row is shared with other calls. What a call changes of the process
(grad mode, threads, signal handlers, ...) is put back. An attribute `check_reference(answer, row)` may say
before the run why a row's reference cannot be judged by (None = it can), an attribute
`final_answer(response, rollout)` what a response answers (pieces that compare answers within a group)."""
