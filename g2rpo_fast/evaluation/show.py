"""Single samples of a model, from a prompt alone or from some tokens of its trace."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from g2rpo_fast.evaluation.ready import Ready
from g2rpo_fast.rollout.groups import plain_asks, requests_of, rollouts_of
from g2rpo_fast.rollout.text_decoder import token_texts
from g2rpo_fast.types import Ask, Prompt, Rollout


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """What the model itself drew."""

    text: str
    """Without what ended it; with the guidance's text before it, what a reward would read."""
    token_ids: tuple[int, ...]
    finish_reason: str


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A prompt, its guidance, and samples that follow it."""

    id: str
    prompt: str
    prompt_ids: tuple[int, ...]
    guidance: str
    guidance_ids: tuple[int, ...]
    """The first tokens of the trace."""
    trace_tokens: int
    samples: tuple[Sampled, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def samples_of(
    ready: Ready,
    prompts: Sequence[Prompt],
    *,
    samples: int,
    guidance: int,
    max_tokens: int,
    seed: int,
    rows: int,
) -> Iterator[Shown]:
    """In the prompts' order, as they are done.

    Args:
        samples: of each prompt.
        guidance: tokens of the trace that each begins with; of a shorter trace all.
        max_tokens: most tokens of a response, guidance included.
        rows: responses that are sampled together, about.
    """
    size = max(1, rows // samples)
    for first in range(0, len(prompts), size):
        part = prompts[first : first + size]
        asks = [
            replace(ask, given_ids=ask.prompt.trace_ids[:guidance])
            for ask in plain_asks(part, [samples] * len(part), max_tokens=max_tokens)
        ]
        rollouts = _rollouts(ready, asks, seed)
        for place, prompt in enumerate(part):
            yield _shown(ready, prompt, rollouts[place * samples : (place + 1) * samples])


def _rollouts(ready: Ready, asks: Sequence[Ask], seed: int) -> list[Rollout]:
    completions = ready.engine.generate(requests_of(asks, seed=seed, step=0), ready.sampling)
    return rollouts_of(asks, completions, sampling=ready.sampling, decode=ready.decode)


def _shown(ready: Ready, prompt: Prompt, rollouts: Sequence[Rollout]) -> Shown:
    return Shown(
        id=prompt.id,
        prompt=prompt.text,
        prompt_ids=prompt.token_ids,
        guidance=_given_text(ready, rollouts[0]),
        guidance_ids=rollouts[0].response_ids[: rollouts[0].guidance_len],
        trace_tokens=len(prompt.trace_ids),
        samples=tuple(_sampled(ready, rollout) for rollout in rollouts),
    )


def _sampled(ready: Ready, rollout: Rollout) -> Sampled:
    return Sampled(
        text=rollout.text[len(_given_text(ready, rollout)) :],
        token_ids=rollout.response_ids[rollout.guidance_len :],
        finish_reason=rollout.finish_reason,
    )


def _given_text(ready: Ready, rollout: Rollout) -> str:
    """Of the guidance; a character that it only begins belongs to what was sampled."""
    return "".join(token_texts(rollout.response_ids, ready.decode)[: rollout.guidance_len])


def as_text(shown: Shown) -> str:
    """For a person: each part under a line that says what it is."""
    parts = [_block(f"{shown.id}: prompt, {len(shown.prompt_ids)} tokens", shown.prompt)]
    if shown.guidance_ids:
        told = f"guidance, given: {len(shown.guidance_ids)} of the trace's {shown.trace_tokens} tokens"
        parts.append(_block(told, shown.guidance))
    for number, sample in enumerate(shown.samples, start=1):
        ended = "ended by itself" if sample.finish_reason == "stop" else "cut off"
        told = f"sample {number}, {len(sample.token_ids)} tokens, {ended}"
        parts.append(_block(told, sample.text))
    return "\n".join(parts)


def _block(title: str, text: str) -> str:
    return "\n".join([f"-- {title}", *(f"   {line}" for line in text.split("\n"))])
