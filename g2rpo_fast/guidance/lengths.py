"""Tokens of guidance for each member of each group: who is guided (share alpha) and how far (length l)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from g2rpo_fast.guidance.config import GuidanceConfig, Unit
from g2rpo_fast.guidance.state import GuidanceState

ROUNDINGS: dict[str, Callable[[float], int]] = {
    "round": lambda count: math.floor(count + 0.5 + 1e-9),
    "floor": lambda count: math.floor(count + 1e-9),
    "ceil": lambda count: math.ceil(count - 1e-9),
}
"""The 1e-9 undoes binary fractions: 0.1 * 30 is 3 members, whichever rounding."""


def guided_lengths(
    config: GuidanceConfig,
    state: GuidanceState,
    *,
    trace_lens: Sequence[int],
    group_sizes: Sequence[int],
    max_tokens: int,
) -> list[list[int]]:
    """Guidance tokens per member of each group of a training step; 0 = unguided. Never called by evaluation.

    `trace_lens` and `group_sizes` have one entry per group. The guided members are the first of their group.
    A prompt without a trace has no guided member, and does not count towards alpha's total. `max_tokens` caps
    the response, guidance included; see `guidance_tokens`.
    """
    assert len(trace_lens) == len(group_sizes), (len(trace_lens), len(group_sizes))
    sizes = [size if trace > 0 and config.enabled else 0 for trace, size in zip(trace_lens, group_sizes)]
    counts = MEMBERS[config.members](config, state, sizes)
    lengths = []
    for trace, size, num_guided in zip(trace_lens, group_sizes, counts):
        tokens = guidance_tokens(
            state.length, config.counts, trace_len=trace, max_tokens=max_tokens, reserve=config.reserve
        )
        lengths.append([tokens] * num_guided + [0] * (size - num_guided))
    return lengths


def guidance_tokens(length: float, unit: Unit, *, trace_len: int, max_tokens: int, reserve: int) -> int:
    """Whole tokens of a trace that a length stands for: l (or l * trace) truncated, as in the released code.

    A trace shorter than l guides with all of it; guidance never exceeds `max_tokens - reserve`, so that many
    response tokens are always left to the model.
    """
    wanted = length if unit == "tokens" else length * trace_len
    return max(min(int(wanted + 1e-9), trace_len, max_tokens - reserve), 0)


def num_guided_of(config: GuidanceConfig, group_size: int) -> int:
    """alpha * G as a number of members: how many of every group `members="first"` guides."""
    return ROUNDINGS[config.rounding](config.share * group_size)


def _first(config: GuidanceConfig, state: GuidanceState, sizes: Sequence[int]) -> list[int]:
    """round(alpha * G) members of each group, step after step the same."""
    return [num_guided_of(config, size) for size in sizes]


def _stratified(config: GuidanceConfig, state: GuidanceState, sizes: Sequence[int]) -> list[int]:
    """round(alpha * sum of G) members in all, by systematic sampling: group p gets
    floor(n * C[p+1] / C[P] + step / P) - floor(n * C[p] / C[P] + step / P), C = cumulative group sizes.

    Every group is within one member of its quota at each step and over any P steps in a row. Exact integers.
    """
    total, num_groups = sum(sizes), len(sizes)
    if not total:
        return [0] * num_groups
    budget = ROUNDINGS[config.rounding](config.share * total)
    offset = state.step % num_groups * total
    counts, before, filled = [], 0, 0
    for size in sizes:
        before += size
        reached = (budget * before * num_groups + offset) // (total * num_groups)
        counts.append(reached - filled)
        filled = reached
    return counts


MEMBERS: dict[str, Callable[[GuidanceConfig, GuidanceState, Sequence[int]], list[int]]] = {
    "first": _first,
    "stratified": _stratified,
}
