"""Which calls of reward functions a batch of rollouts takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from g2rpo_fast.rewards.error import RewardError
from g2rpo_fast.rewards.function import Scope
from g2rpo_fast.types import Rollout


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of channel k's function, about one rollout, a group, or all."""

    k: int
    channel: str
    scope: Scope
    rows: tuple[int, ...]
    """Indices of the rollouts that it is about."""
    rollouts: tuple[Rollout, ...]

    def arguments(self, shown: Sequence[Rollout]) -> tuple[object, object, object]:
        """What the function is given; `shown`: all rollouts, as it may see them."""
        if self.scope == "rollout":
            rollout = shown[self.rows[0]]
            return rollout.text, rollout.prompt.answer, rollout
        rollouts = [shown[row] for row in self.rows]
        answers = [rollout.prompt.answer for rollout in rollouts]
        return [r.text for r in rollouts], answers[0] if self.scope == "group" else answers, rollouts

    def error(self, problem: str) -> RewardError:
        """Of the whole call; it names the first rollout."""
        about = {
            "rollout": "",
            "group": f"over its group of {len(self.rows)}: ",
            "batch": f"over all {len(self.rows)} rollouts: ",
        }
        return RewardError(self.rollouts[0], self.channel, about[self.scope] + problem)


def calls_of(
    channels: Sequence[str], scopes: Sequence[Scope], rollouts: Sequence[Rollout], num_known: int
) -> Iterator[Call]:
    """Rollouts one by one, then groups, then all; none that is about the first `num_known` rollouts alone."""
    groups: dict[int, list[int]] = {}
    for row, rollout in enumerate(rollouts):
        groups.setdefault(rollout.group, []).append(row)
    every = range(len(rollouts))
    about: tuple[tuple[Scope, list[list[int]]], ...] = (
        ("rollout", [[row] for row in every]),
        ("group", list(groups.values())),
        ("batch", [list(every)] if every else []),
    )
    for scope, subjects in about:
        for rows in subjects:
            for k, channel in enumerate(channels):
                if scopes[k] == scope and rows[-1] >= num_known:
                    yield Call(
                        k=k,
                        channel=channel,
                        scope=scope,
                        rows=tuple(rows),
                        rollouts=tuple(rollouts[row] for row in rows),
                    )
