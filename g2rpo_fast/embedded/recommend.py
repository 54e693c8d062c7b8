"""Settings that the embedded task learns with; everything not named keeps its published default."""

from __future__ import annotations

from typing import Any

from g2rpo_fast.embedded.task import ANSWER_MARKER

LONGEST_TRACE = 48
"""Tokens of the trace of eight digits."""
LONGEST_RESPONSE = 58
"""Tokens of its whole perfect response: trace, marker, eight digits, end."""


def recommended() -> dict[str, dict[str, Any]]:
    """Configuration sections as nested plain values, keys as on the command line.

    The learning rate is the dominant risk: at 3e-4 the policy collapses within twenty steps. The windowed
    controller starts near its maximum, because guidance shortens as soon as guided members succeed.
    """
    return {
        "run": {"steps": 60, "prompts_per_step": 16},
        "data": {"format": "columns", "chat": False},
        "reward": {"functions": ["exact_match"], "answer_marker": ANSWER_MARKER},
        "rollout": {"group_size": 12, "max_tokens": LONGEST_RESPONSE + 14, "temperature": 1.0},
        "guidance": {
            "share": 1 / 3,
            "controller": "windowed",
            "length_init": 40.0,
            "length_max": float(LONGEST_TRACE),
        },
        "optim": {"lr": 1e-4, "schedule": "constant", "warmup_steps": 3, "updates_per_batch": 2},
    }
