"""The one error of this stage while rollouts are scored."""

from __future__ import annotations

from typing import Any

from g2rpo_fast.types import Rollout

TEXT_HEAD = 200


class RewardError(RuntimeError):
    """A reward function failed on a rollout, took too long or gave no finite number; the cause is chained."""

    def __init__(self, rollout: Rollout, channel: str, problem: str) -> None:
        self.prompt_id = rollout.prompt.id
        self.channel = channel
        self.rollout = rollout
        self.problem = problem
        head = rollout.text[:TEXT_HEAD] + ("..." if len(rollout.text) > TEXT_HEAD else "")
        super().__init__(
            f"reward {channel!r} of prompt {rollout.prompt.id}, member {rollout.member}: {problem}; "
            f"the response begins {head!r}"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """From the process that scored; its traceback is a note."""
        notes = getattr(self, "__notes__", [])
        return RewardError, (self.rollout, self.channel, self.problem), {"__notes__": notes}
