"""What a reward function is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from g2rpo_fast.types import Rollout

RewardFunction = Callable[[str, str, Rollout], Any]
"""(response text, reference answer, everything known of the rollout) -> a finite number, None where the
channel does not apply to the row, or an awaitable of either (an async function).

Arrays of the rollout are read-only; its row is shared with other calls. What a call changes of the process
(grad mode, threads, signal handlers, ...) is put back. An attribute `check_reference(answer, row)` may say
before the run why a row's reference cannot be judged by (None = it can)."""
