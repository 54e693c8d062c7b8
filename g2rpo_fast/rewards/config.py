"""Settings of the rewards stage."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated

from g2rpo_fast.bounds import FunctionOrName, Ge, Gt, Le, check_fields
from g2rpo_fast.own import name_of


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """What a response is worth: a weighted sum of channels."""

    functions: tuple[FunctionOrName, ...] = ("math",)
    """Channels: math, exact_match, format, code, reasoning_gym, or your own as module:function. From Python a
    function may stand here itself; its name is then module:qualname."""
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
    workers: Annotated[int, Ge(0)] = 0
    """Processes that score beside this one; 0 = none, it scores itself. Each loads the functions (a script
    that trains from Python then needs `if __name__ == "__main__"`), and makes one call at a time. A call over
    reward.timeout_s is ended with its process; where a process dies twice of a call, its rollouts go without
    the channel, which is counted. Async functions stay in this process."""

    code_timeout_s: Annotated[float, Gt(0)] = 10.0
    """code: seconds that a program and its test may take, start included; then it counts as failed."""
    code_cpu_s: Annotated[int, Ge(1), Le(3600)] = 5
    """code: seconds of CPU time, likewise."""
    code_memory_mib: Annotated[int, Ge(64), Le(1 << 20)] = 512
    """code: MiB of address space."""
    code_disk_mib: Annotated[int, Ge(1), Le(1 << 16)] = 16
    """code: MiB in /tmp, which is empty at first and gone afterwards, and of a file."""
    code_open_files: Annotated[int, Ge(16), Le(256)] = 64
    """code: files open at once."""
    code_threads: Annotated[int, Ge(1), Le(1024)] = 32
    """code: threads; a program cannot start processes."""
    code_output_kib: Annotated[int, Ge(1), Le(1 << 16)] = 1024
    """code: KiB of a result that a test is given; what a program prints is thrown away."""

    def __post_init__(self) -> None:
        check_fields(self, "reward")
        if not self.functions:
            raise ValueError("reward.functions: wanted at least one, got none")
        channels = list(self.channels)
        if len(set(channels)) < len(channels):
            raise ValueError(f"reward.functions: wanted distinct names, got {channels}")
        unknown = [name for name in self.weights if name not in channels]
        if unknown:
            raise ValueError(f"reward.weights: wanted names from {channels}, got {unknown}")
        if self.accuracy is not None and self.accuracy not in channels:
            raise ValueError(f"reward.accuracy: wanted one of {channels}, got {self.accuracy!r}")
        if not self.answer_marker:
            raise ValueError("reward.answer_marker: wanted a text, got an empty one")
        try:
            re.compile(self.format_pattern or "")
        except re.error as error:
            raise ValueError(
                f"reward.format_pattern: wanted a regular expression, got {self.format_pattern!r} ({error})"
            ) from error

    @property
    def channels(self) -> tuple[str, ...]:
        """The functions' names."""
        return tuple(given if isinstance(given, str) else name_of(given) for given in self.functions)
