"""Accuracy on held-out prompts, and the guidance profile. Evaluation never sees guidance.

The profile measures P(success | the first f of the trace is given) before training: where success stays near
zero even with the whole trace, guidance cannot produce a reward to learn from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated

import numpy as np

from g2rpo_fast.bounds import Ge, check_fields
from g2rpo_fast.guidance import PROFILE_FRACTIONS, ProfilePoint, is_clear
from g2rpo_fast.metrics import applicable_mean
from g2rpo_fast.progress import Phase, Progress
from g2rpo_fast.rollout.groups import plain_asks, requests_of, rollouts_of
from g2rpo_fast.rollout.text_decoder import Decode, token_texts
from g2rpo_fast.types import (
    Ask,
    Completion,
    Engine,
    Prompt,
    Request,
    Rewards,
    Rollout,
    Sampling,
)

PROFILE_ROUND = 8
"""Prompts of the guidance profile between two looks at whether its verdict is clear."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What is measured beside training."""

    every: Annotated[int, Ge(0)] = 10
    """Steps between evaluations; also before the first step and after the last. 0 = never."""
    samples: Annotated[int, Ge(1)] = 1
    """Completions for each held-out prompt."""
    temperature: Annotated[float, Ge(0)] = 0.0
    """Sampling temperature of evaluation; 0 = greedy."""
    profile_prompts: Annotated[int, Ge(0)] = 32
    """Most training prompts that the guidance profile is measured on; 0 = no profile. Fewer where its verdict
    is clear, or where it has sampled as many tokens as a step may."""
    profile_samples: Annotated[int, Ge(1)] = 4
    """Completions for each of them, at each share of the trace."""

    def __post_init__(self) -> None:
        check_fields(self, "evaluate")
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(
                "evaluate.samples: wanted 1 with evaluate.temperature = 0 (greedy samples are all the same), "
                f"got {self.samples}"
            )


@dataclass(frozen=True)
class Sampler:
    """Asks to rollouts to rewards, with the present weights: for training, evaluation and the profile."""

    engine: Engine
    sampling: Sampling
    max_tokens: int
    decode: Decode
    rewards: Callable[[Sequence[Rollout], Rewards | None], Rewards]
    """Of rollouts, the first of which may have rewards already."""
    seed: int
    progress: Progress = field(default_factory=Progress)
    """Tells of what takes long."""

    def requests(self, asks: Sequence[Ask], step: int) -> list[Request]:
        return requests_of(asks, seed=self.seed, step=step)

    def phase(self, what: str, asks: Sequence[Ask]) -> Phase:
        """Of sampling answers to them."""
        return self.progress.phase(what, len(asks), "rows")

    def complete(self, asks: Sequence[Ask], step: int, *, what: str) -> list[Completion]:
        """`what`: this is for, as a person reads it."""
        with self.phase(what, asks) as phase:
            return self.engine.generate(self.requests(asks, step), self.sampling, phase)

    def paid(self, rollouts: Sequence[Rollout], before: Rewards | None = None, *, what: str) -> Rewards:
        """`before`: rewards that the first of them have already."""
        with self.progress.phase(f"{what}: rewards of {len(rollouts)} rows"):
            return self.rewards(rollouts, before)

    def rollouts(self, asks: Sequence[Ask], completions: Sequence[Completion]) -> list[Rollout]:
        return rollouts_of(asks, completions, sampling=self.sampling, decode=self.decode)

    def texts_of(self, rollout: Rollout) -> list[str]:
        """See `TextsOf`."""
        return token_texts(rollout.response_ids, self.decode)

    def run(self, asks: Sequence[Ask], step: int, *, what: str) -> tuple[list[Rollout], Rewards]:
        rollouts = self.rollouts(asks, self.complete(asks, step, what=what))
        return rollouts, self.paid(rollouts, what=what)


def evaluate(
    sampler: Sampler, prompts: Sequence[Prompt], config: EvaluateConfig
) -> tuple[dict[str, float], list[Rollout], Rewards]:
    """Unguided accuracy, reward, length and share of finished answers on `prompts`; and of what."""
    sampling = replace(sampler.sampling, temperature=config.temperature, top_p=1.0, top_k=0)
    asks = plain_asks(prompts, [config.samples] * len(prompts), max_tokens=sampler.max_tokens)
    rollouts, rewards = replace(sampler, sampling=sampling).run(asks, step=0, what="evaluation")
    count = len(rollouts)
    stats = {
        "eval/accuracy": applicable_mean(rewards.accuracy_R),
        "eval/reward": float(rewards.total_R.mean()),
        "eval/length": sum(r.sampled_len for r in rollouts) / count,
        "eval/finished": sum(r.finish_reason == "stop" for r in rollouts) / count,
        "eval/rows": float(count),
    }
    return stats, rollouts, rewards


def guidance_profile(
    sampler: Sampler, prompts: Sequence[Prompt], config: EvaluateConfig, *, reserve: int, budget: int
) -> tuple[ProfilePoint, ...]:
    """Success rate given the first 0, 25, 50, 75 and 100% of the trace, sampled as in training.

    Prompts without a trace are left out. At least `reserve` tokens of a response are the model's own. Prompts
    are taken `PROFILE_ROUND` at a time, until the verdict is clear (`guidance.is_clear`), `budget` tokens are
    sampled, or `evaluate.profile_prompts` are done: all by what was sampled, so a seed gives one profile.
    """
    traced = [p for p in prompts if p.trace_ids][: config.profile_prompts]
    paid: list[list[np.ndarray]] = [[] for _ in PROFILE_FRACTIONS]
    points: list[ProfilePoint] = []
    sampled = 0
    for start in range(0, len(traced), PROFILE_ROUND):
        if points and (is_clear(points) or sampled >= budget):
            break
        some = traced[start : start + PROFILE_ROUND]
        for index, fraction in enumerate(PROFILE_FRACTIONS):
            asks = given_asks(sampler, some, config, fraction, longest=sampler.max_tokens - reserve)
            what = f"guidance profile, {fraction:.0%} of the trace, from prompt {start + 1}"
            rollouts, rewards = sampler.run(asks, step=-1 - index, what=what)
            sampled += sum(rollout.sampled_len for rollout in rollouts)
            paid[index].append(rewards.accuracy_R)
        points = [_point(*pair) for pair in zip(PROFILE_FRACTIONS, paid, strict=True)]
    return tuple(points)


def given_asks(
    sampler: Sampler, prompts: Sequence[Prompt], config: EvaluateConfig, fraction: float, *, longest: int
) -> list[Ask]:
    """Asks that start from `fraction` of the trace, at most its first `longest` tokens."""
    sizes = [config.profile_samples] * len(prompts)
    return [
        replace(ask, given_ids=trace[: min(round(fraction * len(trace)), longest)])
        for ask in plain_asks(prompts, sizes, max_tokens=sampler.max_tokens)
        for trace in [ask.prompt.trace_ids]
    ]


def _point(fraction: float, paid: Sequence[np.ndarray]) -> ProfilePoint:
    accuracy_R = np.concatenate(paid)
    num = int(np.sum(~np.isnan(accuracy_R)))
    success = applicable_mean(accuracy_R) if num else 0.0
    return ProfilePoint(fraction=fraction, success=success, num=num)
