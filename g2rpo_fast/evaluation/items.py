"""What a model answers to each problem: greedily, and in samples. Without guidance.

An item, as its JSON line has it (one line of `eval --out`):

    {"id": "eval:3", "prompt": "29:", "reference": "29",
     "greedy": {"text": "2>9#29", "answer": "29", "right": true, "reward": 1.0,
                "rewards": {"exact_match": 1.0}, "tokens": 7, "finished": true},
     "samples": [{"text": ...}, ...],
     "vote": {"answer": "29", "votes": 5, "right": true}}

`right`: whether the channel that counts as accuracy paid more than `reward.success`; null where it does not
apply. `answer`: as the reward's `final_answer` finds it; null where it has none, or finds none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from g2rpo_fast.evaluate import Sampler
from g2rpo_fast.evaluation.ready import Ready
from g2rpo_fast.evaluation.statistics import majority
from g2rpo_fast.progress import Progress
from g2rpo_fast.rewards.loading import RewardSet
from g2rpo_fast.rewards.scoring import score
from g2rpo_fast.rollout.groups import plain_asks
from g2rpo_fast.types import Prompt

UNTOLD_S = 1e9
"""Of a batch, which is not told of by itself: the evaluation that it is part of is."""


@dataclass(frozen=True, kw_only=True)
class Response:
    """One response of the model."""

    text: str
    """As rewards read it."""
    answer: str | None
    right: bool | None
    reward: float
    """Weighted sum of the channels."""
    rewards: dict[str, float | None]
    tokens: int
    finished: bool
    """It ended by itself."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One problem."""

    id: str
    prompt: str
    """The whole text, template included."""
    reference: str
    greedy: Response
    samples: tuple[Response, ...]

    @property
    def vote(self) -> Response | None:
        """The first sample with the answer that most samples give; None where no sample gives one."""
        place = majority([sample.answer for sample in self.samples])
        return None if place is None else self.samples[place]

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it; see the top of this file."""
        vote = self.vote
        voted = None
        if vote is not None:
            votes = sum(sample.answer == vote.answer for sample in self.samples)
            voted = {"answer": vote.answer, "votes": votes, "right": vote.right}
        return {**asdict(self), "samples": [asdict(sample) for sample in self.samples], "vote": voted}


def measure(
    ready: Ready,
    rewards: RewardSet,
    prompts: Sequence[Prompt],
    *,
    samples: int,
    max_tokens: int,
    seed: int,
    rows: int,
) -> Iterator[Item]:
    """Items in the prompts' order, as they are done.

    Args:
        samples: of each problem, beside the greedy response.
        rows: responses that are sampled together, about. A reward function that judges all rollouts of an
            evaluation gets all of them together, whatever this says.

    Raises:
        RewardError: a reward function failed.
        FloatingPointError: the model's logits are not finite.
    """
    sampler = Sampler(
        engine=ready.engine,
        sampling=ready.sampling,
        max_tokens=max_tokens,
        decode=ready.decode,
        rewards=partial(score, rewards),
        seed=seed,
        progress=Progress(first_s=UNTOLD_S),
    )
    greedy = replace(sampler, sampling=replace(ready.sampling, temperature=0.0, top_p=1.0, top_k=0))
    together = "batch" in rewards.scopes
    size = len(prompts) if together else max(1, rows // max(1, samples))
    for first in range(0, len(prompts), size):
        part = prompts[first : first + size]
        best = _responses(greedy, rewards, part, 1)
        drawn = _responses(sampler, rewards, part, samples)
        for place, prompt in enumerate(part):
            yield Item(
                id=prompt.id,
                prompt=prompt.text,
                reference=prompt.answer,
                greedy=best[place],
                samples=tuple(drawn[place * samples : (place + 1) * samples]),
            )


def _responses(sampler: Sampler, rewards: RewardSet, prompts: Sequence[Prompt], count: int) -> list[Response]:
    """`count` of each prompt, end to end."""
    if not count:
        return []
    asks = plain_asks(prompts, [count] * len(prompts), max_tokens=sampler.max_tokens)
    rollouts, paid = sampler.run(asks, step=0, what="evaluation")
    return [
        Response(
            text=rollout.text,
            answer=rewards.answer_of(rollout),
            right=None if math.isnan(right) else bool(right),
            reward=total,
            rewards={
                name: None if math.isnan(value) else value
                for name, value in zip(paid.channels, channels, strict=True)
            },
            tokens=rollout.sampled_len,
            finished=rollout.finish_reason == "stop",
        )
        for rollout, right, total, channels in zip(
            rollouts, paid.accuracy_R.tolist(), paid.total_R.tolist(), paid.reward_RK.tolist(), strict=True
        )
    ]
