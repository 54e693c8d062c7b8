"""Accuracy on held-out prompts, and the guidance profile. Evaluation never sees guidance.

The profile measures P(success | the first f of the trace is given) before training: where success stays near
zero even with the whole trace, guidance cannot produce a reward to learn from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np

from g2rpo_fast.bounds import Ge, check_fields
from g2rpo_fast.guidance import PROFILE_FRACTIONS, ProfilePoint
from g2rpo_fast.metrics import applicable_mean
from g2rpo_fast.rollout.groups import plain_asks, sample_asks
from g2rpo_fast.rollout.text_decoder import Decode
from g2rpo_fast.types import Ask, Engine, Prompt, Rewards, Rollout, Sampling


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
    """Training prompts that the guidance profile is measured on; 0 = no profile."""
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
class Judge:
    """Samples and scores prompts with the present weights: what evaluation and the profile share."""

    engine: Engine
    sampling: Sampling
    max_tokens: int
    decode: Decode
    score: Callable[[Sequence[Rollout], Rewards | None], Rewards]
    """Of rollouts, the first of which may have rewards already."""
    seed: int

    def run(self, asks: Sequence[Ask], step: int) -> tuple[list[Rollout], Rewards]:
        rollouts = sample_asks(
            self.engine, asks, sampling=self.sampling, seed=self.seed, step=step, decode=self.decode
        )
        return rollouts, self.score(rollouts, None)


def evaluate(judge: Judge, prompts: Sequence[Prompt], config: EvaluateConfig) -> dict[str, float]:
    """Unguided accuracy, reward, length and share of finished answers on `prompts`."""
    sampling = replace(judge.sampling, temperature=config.temperature, top_p=1.0, top_k=0)
    asks = plain_asks(prompts, [config.samples] * len(prompts), max_tokens=judge.max_tokens)
    rollouts, rewards = replace(judge, sampling=sampling).run(asks, step=0)
    count = len(rollouts)
    return {
        "eval/accuracy": applicable_mean(rewards.accuracy_R),
        "eval/reward": float(rewards.total_R.mean()),
        "eval/length": sum(r.sampled_len for r in rollouts) / count,
        "eval/finished": sum(r.finish_reason == "stop" for r in rollouts) / count,
    }


def guidance_profile(
    judge: Judge, prompts: Sequence[Prompt], config: EvaluateConfig, *, reserve: int
) -> tuple[ProfilePoint, ...]:
    """Success rate given the first 0, 25, 50, 75 and 100% of the trace, sampled as in training.

    Prompts without a trace are left out. At least `reserve` tokens of a response are the model's own.
    """
    traced = [p for p in prompts if p.trace_ids][: config.profile_prompts]
    points = []
    for index, fraction in enumerate(PROFILE_FRACTIONS if traced else ()):
        longest = judge.max_tokens - reserve
        asks = [
            replace(ask, given_ids=trace[: min(round(fraction * len(trace)), longest)])
            for ask in plain_asks(traced, [config.profile_samples] * len(traced), max_tokens=judge.max_tokens)
            for trace in [ask.prompt.trace_ids]
        ]
        _, rewards = judge.run(asks, step=-1 - index)
        num = int(np.sum(~np.isnan(rewards.accuracy_R)))
        success = applicable_mean(rewards.accuracy_R) if num else 0.0
        points.append(ProfilePoint(fraction=fraction, success=success, num=num))
    return tuple(points)
