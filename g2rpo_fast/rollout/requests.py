"""What any engine refuses before it samples."""

from __future__ import annotations

from collections.abc import Sequence

from g2rpo_fast.types import Request


def check_requests(requests: Sequence[Request], vocabulary: int, num_positions: int) -> None:
    """ValueError naming the request: an empty prompt, a token id outside the vocabulary, a negative
    `max_tokens`, or more tokens than there are positions for."""
    checked: set[tuple[int, ...]] = set()
    for i, request in enumerate(requests):
        prompt = request.prompt_ids
        if request.max_tokens < 0:
            raise ValueError(f"request {i}: wanted max_tokens of at least 0, got {request.max_tokens}")
        if len(prompt) + request.max_tokens > num_positions:
            raise ValueError(
                f"request {i}: wanted prompt and max_tokens within the model's {num_positions} positions, "
                f"got {len(prompt)} + {request.max_tokens}"
            )
        if prompt in checked:
            continue
        checked.add(prompt)
        if not prompt:
            raise ValueError(f"request {i}: wanted a prompt of at least one token, got none")
        if min(prompt) < 0 or max(prompt) >= vocabulary:
            bad = next(token for token in prompt if not 0 <= token < vocabulary)
            raise ValueError(f"request {i}: wanted token ids in [0, {vocabulary}), got {bad}")
