"""From asks to rollouts: requests with given tokens in front, completions behind.

A guided member's response is `trace[:l] + y`, `y ~ pi(. | prompt, trace[:l])` (G2RPO-A, arXiv 2508.13023,
guided GRPO objective). Token ids end to end: nothing is decoded and tokenised again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from g2rpo_fast.rollout.stop_text import ResponseText
from g2rpo_fast.rollout.text_decoder import Decode
from g2rpo_fast.types import Ask, Completion, Prompt, Request, Rollout, Sampling


def request_seed(
    seed: int, step: int, prompt_id: str, member: int, repeat: int = 0, sampling_round: int = 0
) -> int:
    """A 63-bit seed that depends on what is sampled and when, never on its place in the batch.

    Args:
        repeat: how many groups of the same prompt come before this one in the round.
        sampling_round: of the step.
    """
    text = f"{seed}/{step}/{prompt_id}/{member}" + f"#{repeat}" * (repeat > 0)
    text += f"@{sampling_round}" * (sampling_round > 0)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


def plain_asks(
    prompts: Sequence[Prompt], sizes: Sequence[int], *, max_tokens: int, first_group: int = 0
) -> list[Ask]:
    """A group of `sizes[i]` rollouts of `prompts[i]`, from the prompt alone; groups numbered in order."""
    return [
        Ask(
            prompt=prompt,
            group=first_group + place,
            member=member,
            sampling_prompt_ids=prompt.token_ids,
            training_prompt_ids=prompt.token_ids,
            max_tokens=max_tokens,
        )
        for place, (prompt, size) in enumerate(zip(prompts, sizes, strict=True))
        for member in range(size)
    ]


def requests_of(asks: Sequence[Ask], *, seed: int, step: int) -> list[Request]:
    """What an engine is asked for.

    Args:
        seed, step: with prompt id, member and round they fix every draw. A prompt that has several groups in
            a round (an epoch ended within the batch) is drawn anew for each.
    """
    repeats = _repeats(asks)
    return [
        Request(
            prompt_ids=ask.sampling_prompt_ids + ask.given_ids,
            max_tokens=ask.max_tokens - len(ask.given_ids),
            seed=request_seed(
                seed, step, ask.prompt.id, ask.member, repeats[ask.round, ask.group], ask.round
            ),
            guidance_len=len(ask.given_ids),
        )
        for ask in asks
    ]


def _repeats(asks: Sequence[Ask]) -> dict[tuple[int, int], int]:
    """(round, group) -> how many groups before it in the round are of the same prompt."""
    seen: dict[tuple[int, str], list[int]] = {}
    repeats: dict[tuple[int, int], int] = {}
    for ask in asks:
        groups = seen.setdefault((ask.round, ask.prompt.id), [])
        if ask.group not in groups:
            groups.append(ask.group)
        repeats[ask.round, ask.group] = groups.index(ask.group)
    return repeats


def rollouts_of(
    asks: Sequence[Ask], completions: Sequence[Completion], *, sampling: Sampling, decode: Decode
) -> list[Rollout]:
    """One rollout for each ask, in order.

    Args:
        completions: the answers to `requests_of` these asks.
        sampling: what they were sampled with.
    """
    text_of = ResponseText(sampling, decode)
    return [_rollout(*pair, text_of) for pair in zip(asks, completions, strict=True)]


def _rollout(ask: Ask, completion: Completion, text_of: ResponseText) -> Rollout:
    response_ids, num_given = ask.given_ids + completion.token_ids, len(ask.given_ids)
    mask = np.ones(len(response_ids), dtype=np.bool_)
    mask[:num_given] = ask.given_in_loss
    logp = np.full(len(response_ids), np.nan, dtype=np.float32)
    logp[num_given:] = completion.logp
    return Rollout(
        prompt=ask.prompt,
        group=ask.group,
        member=ask.member,
        training_prompt_ids=ask.training_prompt_ids,
        sampling_prompt_ids=ask.sampling_prompt_ids,
        response_ids=response_ids,
        guidance_len=num_given,
        loss_mask=mask,
        rollout_logp=logp,
        text=text_of(response_ids, num_given),
        finish_reason=completion.finish_reason,
        weight_version=completion.weight_version,
        token_versions=completion.token_versions,
        experts=completion.experts,
        hint_level=ask.hint_level,
        round=ask.round,
        source=ask.source,
    )
