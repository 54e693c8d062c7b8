"""The figures of an evaluation, each with its interval, as a record and as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from g2rpo_fast.evaluation.items import Item, Response
from g2rpo_fast.evaluation.statistics import (
    CONFIDENCE,
    RESAMPLES,
    bootstrap_interval,
    pass_at_k,
    wilson_interval,
)

BOOTSTRAP_SEED = 0
Figure = dict[str, Any]


def powers_of_two(samples: int) -> tuple[int, ...]:
    """1, 2, 4, ... up to the samples of a problem, and these."""
    powers = {1 << exponent for exponent in range(samples.bit_length())}
    return tuple(sorted(powers | {samples})) if samples else ()


def summarize(items: Sequence[Item], ks: Sequence[int], *, votes: bool) -> dict[str, Any]:
    """Greedy accuracy; with samples also pass@k for each of `ks`; with several and `votes` the majority's.

    A response that the accuracy channel does not apply to counts nowhere. A problem counts for pass@k where k
    of its samples are judged, and in the vote where the winning answer is; a vote that no sample takes part
    in is wrong.
    """
    greedy = [item.greedy for item in items]
    found: dict[str, Any] = {"problems": len(items), "greedy": {**_share(greedy), **_means(greedy)}}
    samples = [sample for item in items for sample in item.samples]
    if not samples:
        return found
    sampled: dict[str, Any] = {
        "samples": len(items[0].samples),
        "pass@k": {str(k): _of_problems(_passes(items, k)) for k in ks},
        "majority": _of_problems(_votes(items)) if votes and len(items[0].samples) > 1 else None,
        **_means(samples),
    }
    return {**found, "sampled": sampled}


def _share(responses: Sequence[Response]) -> Figure:
    judged = [response.right for response in responses if response.right is not None]
    if not judged:
        return {"accuracy": None, "interval": None, "right": 0, "judged": 0}
    return {
        "accuracy": sum(judged) / len(judged),
        "interval": list(wilson_interval(sum(judged), len(judged))),
        "right": sum(judged),
        "judged": len(judged),
    }


def _means(responses: Sequence[Response]) -> Figure:
    channels = {
        name: [paid for r in responses if (paid := r.rewards[name]) is not None]
        for name in responses[0].rewards
    }
    return {
        "reward": float(np.mean([r.reward for r in responses])),
        "rewards": {name: float(np.mean(paid)) if paid else None for name, paid in channels.items()},
        "tokens": float(np.mean([r.tokens for r in responses])),
        "finished": float(np.mean([r.finished for r in responses])),
    }


def _passes(items: Sequence[Item], k: int) -> list[float]:
    judged = [[s.right for s in item.samples if s.right is not None] for item in items]
    return [pass_at_k(len(right), sum(right), k) for right in judged if len(right) >= k]


def _votes(items: Sequence[Item]) -> list[float]:
    winners = [item.vote for item in items]
    return [
        float(bool(winner and winner.right))
        for winner in winners
        if winner is None or winner.right is not None
    ]


def _of_problems(values: Sequence[float]) -> Figure:
    if not values:
        return {"value": None, "interval": None, "problems": 0}
    value_P = np.asarray(values)
    interval = bootstrap_interval(value_P, seed=BOOTSTRAP_SEED)
    return {"value": float(value_P.mean()), "interval": list(interval), "problems": len(values)}


def as_text(summary: dict[str, Any]) -> str:
    """A line a figure."""
    greedy = summary["greedy"]
    right = f"{greedy['right']} of {greedy['judged']}"
    lines = [_line("greedy", greedy["accuracy"], greedy["interval"], f"{right}; {_described(greedy)}")]
    sampled = summary.get("sampled")
    if sampled:
        for k, figure in sampled["pass@k"].items():
            lines.append(_line(f"pass@{k}", figure["value"], figure["interval"], _not_all(figure, summary)))
        vote, size = sampled["majority"], sampled["samples"]
        if vote is None and size > 1:
            lines.append(f"{f'majority of {size}':>16}  not measured: the reward tells of no final answers")
        if vote is not None:
            lines.append(
                _line(f"majority of {size}", vote["value"], vote["interval"], _not_all(vote, summary))
            )
        lines.append(f"{'samples':>16}  {_described(sampled)}")
    methods = f"{CONFIDENCE:.0%} intervals: greedy by Wilson"
    if sampled:
        methods += f", the others by {RESAMPLES} bootstraps over problems"
    return "\n".join([*lines, methods])


def _line(name: str, value: float | None, interval: Sequence[float] | None, more: str) -> str:
    if value is None or interval is None:
        return f"{name:>16}  no response that the reward applies to"
    low, high = interval
    return f"{name:>16}  {value:.3f}  [{low:.3f}, {high:.3f}]" + (f"  {more}" if more else "")


def _not_all(figure: Figure, summary: dict[str, Any]) -> str:
    left_out = summary["problems"] - figure["problems"]
    return f"({left_out} problems without enough judged samples left out)" if left_out else ""


def _described(means: Figure) -> str:
    channels = means["rewards"]
    named = "".join(f", {name} {value:.3f}" for name, value in channels.items() if value is not None)
    return (
        f"reward {means['reward']:.3f}{named if len(channels) > 1 else ''}, {means['tokens']:.1f} tokens, "
        f"{means['finished']:.0%} ended by themselves"
    )
