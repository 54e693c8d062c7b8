"""Problems that are conversations: a list of messages, of which the last asks.

[{"role": "system", "content": "..."}, {"role": "user", "content": "..."}, {"role": "assistant", ...},
 {"role": "user", "content": "..."}]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Conversation = list[dict[str, str]]
Asked = str | Conversation
"""A problem: a text, or a conversation."""
ANSWERS = ("assistant", "system")
"""Roles that ask nothing."""


def conversation_of(messages: Sequence[Any], name: str) -> Conversation:
    """What a column holds, as texts by role and content. Raises ValueError, naming column and message."""
    found = [
        _message(message, f"column {name!r}, message {n}") for n, message in enumerate(messages, start=1)
    ]
    if not found:
        raise ValueError(f"column {name!r}: wanted messages, got none")
    role, content = found[-1]["role"], found[-1]["content"]
    if role in ANSWERS:
        raise ValueError(f"column {name!r}: wanted a last message that asks, such as a user's, got {role!r}")
    if not content.strip():
        raise ValueError(f"column {name!r}: empty last message")
    return found


def _message(message: Any, where: str) -> dict[str, str]:
    """Keys without a value are those that other rows of a Parquet file have."""
    if not isinstance(message, Mapping):
        raise ValueError(f"{where}: wanted an object with role and content, got {type(message).__name__}")
    given = {key: value for key, value in message.items() if value is not None}
    if missing := [key for key in ("role", "content") if key not in given]:
        raise ValueError(f"{where}: wanted role and content, got no {' and no '.join(missing)}")
    if unknown := [key for key in given if key not in ("role", "content")]:
        raise ValueError(f"{where}: wanted role and content alone, got {', '.join(map(repr, unknown))} too")
    for key, value in given.items():
        if not isinstance(value, str) or (key == "role" and not value):
            raise ValueError(f"{where}: wanted text as {key}, got {value!r:.80}")
    return {"role": given["role"], "content": given["content"]}


def with_asked(problem: Asked, change: Callable[[str], str]) -> Asked:
    """The problem with another text, or the conversation with another last message."""
    if isinstance(problem, str):
        return change(problem)
    return [*problem[:-1], {**problem[-1], "content": change(problem[-1]["content"])}]


def text_of(problem: Asked) -> str:
    """All of its texts."""
    return problem if isinstance(problem, str) else "\n".join(message["content"] for message in problem)
