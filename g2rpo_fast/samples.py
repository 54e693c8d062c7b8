"""Some of a run's rollouts, as `samples.jsonl` keeps them and the terminal shows them: what a person reads.

A row says where it is from (step, split, group, member), what was given (prompt, guidance), what was sampled,
and what came of it: reward channels by their names in metrics.jsonl, total, advantage, finish reason. Rows of
a step are those that it trained on, with shaped rewards; rows of an evaluation have no advantage.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from g2rpo_fast.bounds import Ge, check_fields
from g2rpo_fast.pieces import Outcome
from g2rpo_fast.rollout.text_decoder import Decode, token_texts
from g2rpo_fast.types import Doubles, Rewards, Rollout

GROUPS = 2
"""Of a step, from each of which up to four rows are kept."""
HELD_OUT = 4
"""Rows kept of an evaluation."""
OPENED, CLOSED = "«", "»"
"""Around guidance, in the terminal."""

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class SamplesConfig:
    """Rollouts that are kept for a person to read, in samples.jsonl."""

    every: Annotated[int, Ge(0)] = 10
    """Steps between samples of training, the first and the last step among them; every evaluation's are kept
    as well. 0 = no samples."""

    def __post_init__(self) -> None:
        check_fields(self, "samples")

    def due(self, step: int, total_steps: int) -> bool:
        return self.every > 0 and (step % self.every == 0 or step in (1, total_steps))


def step_rows(outcome: Outcome, decode: Decode) -> list[Row]:
    """Of the first groups, those with a signal before others: the best and the worst row of those guided, and
    of the others."""
    settled, advantage_R = outcome.settled, outcome.advantage_R
    groups: dict[int, list[int]] = {}
    for index, rollout in enumerate(settled.rollouts):
        groups.setdefault(rollout.group, []).append(index)
    telling = sorted(groups.values(), key=lambda rows: not advantage_R[rows].any())
    return [
        row_of(settled.rollouts[i], settled.rewards, i, decode, advantage=float(advantage_R[i]))
        for rows in telling[:GROUPS]
        for i in _extremes(rows, settled.rollouts, settled.rewards.total_R)
    ]


def held_out_rows(rollouts: Sequence[Rollout], rewards: Rewards, decode: Decode) -> list[Row]:
    """The first ones, the same prompts in every evaluation."""
    return [row_of(rollout, rewards, i, decode) for i, rollout in enumerate(rollouts[:HELD_OUT])]


def row_of(
    rollout: Rollout, rewards: Rewards, index: int, decode: Decode, *, advantage: float | None = None
) -> Row:
    """One line of samples.jsonl, its step apart. Without an advantage it is of an evaluation."""
    hinted = rollout.sampling_prompt_ids != rollout.prompt.token_ids
    given = len("".join(token_texts(rollout.response_ids, decode)[: rollout.guidance_len]))
    paid = dict(zip(rewards.channels, rewards.reward_RK[index].tolist(), strict=True))
    return {
        "split": "held out" if advantage is None else "train",
        "prompt_id": rollout.prompt.id,
        "group": rollout.group,
        "member": rollout.member,
        "round": rollout.round,
        "prompt": decode(rollout.sampling_prompt_ids) if hinted else rollout.prompt.text,
        "guidance": rollout.text[:given],
        "sampled": rollout.text[given:],
        "guidance_tokens": rollout.guidance_len,
        "sampled_tokens": rollout.sampled_len,
        "finish_reason": rollout.finish_reason,
        **{f"reward/{name}": None if math.isnan(value) else value for name, value in paid.items()},
        "total": float(rewards.total_R[index]),
        "advantage": advantage,
    }


def _extremes(rows: Sequence[int], rollouts: Sequence[Rollout], total_R: Doubles) -> list[int]:
    kept: list[int] = []
    for guided in (True, False):
        part = [i for i in rows if rollouts[i].guided == guided]
        ends = (max(part, key=total_R.__getitem__), min(part, key=total_R.__getitem__)) if part else ()
        kept += dict.fromkeys(ends)
    return kept


def shown(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line each of the first row with guidance and the first without."""
    first: dict[bool, Mapping[str, Any]] = {}
    for row in rows:
        first.setdefault(row["guidance_tokens"] > 0, row)
    return [_line(row) for row in first.values()]


def _line(row: Mapping[str, Any]) -> str:
    """The ends of prompt and guidance, the beginning and end of what was sampled, and what came of it."""
    given = f"{OPENED}{_cut(row['guidance'], 20, keep=0)}{CLOSED}" if row["guidance_tokens"] else ""
    prompt = _cut(row["prompt"], 16, keep=0)
    sampled = _cut(row["sampled"], 32, keep=12)
    advantage = f", advantage {row['advantage']:+.2f}" if row["advantage"] is not None else ""
    return f"  e.g. {prompt} {given}{sampled}  (reward {row['total']:.2f}{advantage}, {row['finish_reason']})"


def _cut(text: str, width: int, *, keep: int) -> str:
    """In one line of at most `width` characters, of which the first `keep` and the last remain."""
    flat = "".join(c if c.isprintable() else "⏎" if c == "\n" else "�" for c in text)
    return flat if len(flat) <= width else f"{flat[:keep]}…{flat[keep + 1 - width :]}"
