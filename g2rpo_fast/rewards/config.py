"""Settings of the rewards stage."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated

from g2rpo_fast.bounds import Ge, Gt, check_fields


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """What a response is worth: a weighted sum of channels."""

    functions: tuple[str, ...] = ("math",)
    """Channels: math, exact_match, format, or your own as module:function."""
    weights: dict[str, float] = field(default_factory=dict)
    """Weight of a channel in the sum; 1 where not given."""
    accuracy: str | None = None
    """Channel that counts as accuracy in evaluation and for guidance; none = the first."""
    success: float = 0.0
    """A rollout succeeds when its accuracy channel pays more than this: right for rewards of 0 and 1, of -1
    and 1, of 0 and 2. A channel of grades wants its own. Accuracy is the share that succeeds."""
    pay_truncated: bool = False
    """math and exact_match also pay a response that was cut off before its end."""
    answer_marker: str = "####"
    """exact_match compares what follows the last of these."""
    format_pattern: str | None = None
    """format: regular expression that the whole response must match by itself, without the prompt; a dot
    matches newlines too. None = one <think>...</think> and an answer after it, where a <think> that the
    prompt ends with counts."""

    timeout_s: Annotated[float, Gt(0)] | None = 60.0
    """Seconds that one call of your own function may take; none = no limit. Python code and waits are
    interrupted; of a call into C that does not return the run can only tell."""
    concurrency: Annotated[int, Ge(1)] = 64
    """Calls of your own async function that are under way at once."""

    def __post_init__(self) -> None:
        check_fields(self, "reward")
        if not self.functions:
            raise ValueError("reward.functions: wanted at least one, got none")
        if len(set(self.functions)) < len(self.functions):
            raise ValueError(f"reward.functions: wanted distinct names, got {list(self.functions)}")
        unknown = [name for name in self.weights if name not in self.functions]
        if unknown:
            raise ValueError(f"reward.weights: wanted names from {list(self.functions)}, got {unknown}")
        if self.accuracy is not None and self.accuracy not in self.functions:
            raise ValueError(f"reward.accuracy: wanted one of {list(self.functions)}, got {self.accuracy!r}")
        if not self.answer_marker:
            raise ValueError("reward.answer_marker: wanted a text, got an empty one")
        try:
            re.compile(self.format_pattern or "")
        except re.error as error:
            raise ValueError(
                f"reward.format_pattern: wanted a regular expression, got {self.format_pattern!r} ({error})"
            ) from error
