"""From prompts to groups of rollouts: requests with guidance in front, completions behind.

A guided member's response is `trace[:l] + y`, `y ~ pi(. | prompt, trace[:l])` (G2RPO-A, arXiv 2508.13023,
guided GRPO objective). Token ids end to end: nothing is decoded and tokenised again.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np

from g2rpo_fast.rollout.stop_text import ResponseText
from g2rpo_fast.rollout.text_decoder import Decode
from g2rpo_fast.types import Completion, Engine, Prompt, Request, Rollout, Sampling


def request_seed(seed: int, step: int, prompt_id: str, member: int, repeat: int = 0) -> int:
    """A 63-bit seed that depends on what is sampled and when, never on its place in the batch.

    `repeat`: how many groups of the same prompt come before this one in the step.
    """
    text = f"{seed}/{step}/{prompt_id}/{member}" + f"#{repeat}" * (repeat > 0)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


def sample_groups(
    engine: Engine,
    prompts: Sequence[Prompt],
    guidance_lengths: Sequence[Sequence[int]],
    *,
    sampling: Sampling,
    max_tokens: int,
    seed: int,
    step: int,
    decode: Decode,
    guidance_in_loss: bool = False,
) -> list[Rollout]:
    """Samples one group for each prompt: `requests_of`, the engine's answers, `rollouts_of`."""
    requests = requests_of(prompts, guidance_lengths, max_tokens=max_tokens, seed=seed, step=step)
    completions = engine.generate(requests, sampling)
    return rollouts_of(
        prompts,
        guidance_lengths,
        completions,
        sampling=sampling,
        decode=decode,
        guidance_in_loss=guidance_in_loss,
    )


def requests_of(
    prompts: Sequence[Prompt],
    guidance_lengths: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    seed: int,
    step: int,
) -> list[Request]:
    """What an engine is asked for one group of each prompt, group by group.

    Args:
        guidance_lengths: for each prompt, the trace tokens that each member starts from; 0 = unguided. The
            inner length is the group's size.
        max_tokens: cap of a response, its guidance included.
        step: together with `seed`, prompt id and member it fixes every draw. A prompt that occurs again (an
            epoch ended within the batch) is drawn anew.
    """
    repeats = _repeats(prompts)
    return [
        Request(
            prompt_ids=prompt.token_ids + prompt.trace_ids[:length],
            max_tokens=max_tokens - length,
            seed=request_seed(seed, step, prompt.id, member, repeats[group]),
            guidance_len=len(prompt.trace_ids[:length]),
        )
        for group, prompt, member, length in _slots(prompts, guidance_lengths)
    ]


def rollouts_of(
    prompts: Sequence[Prompt],
    guidance_lengths: Sequence[Sequence[int]],
    completions: Sequence[Completion],
    *,
    sampling: Sampling,
    decode: Decode,
    guidance_in_loss: bool = False,
) -> list[Rollout]:
    """Rollouts, group by group, from the answers to `requests_of` the same prompts and lengths.

    Args:
        sampling: what they were sampled with.
        guidance_in_loss: whether injected tokens carry loss.
    """
    text_of = ResponseText(sampling, decode)
    return [
        _rollout(group, prompt, member, length, completion, text_of, guidance_in_loss)
        for (group, prompt, member, length), completion in zip(
            _slots(prompts, guidance_lengths), completions, strict=True
        )
    ]


def _repeats(prompts: Sequence[Prompt]) -> list[int]:
    """For each prompt, how many before it are the same one."""
    seen: Counter[str] = Counter()
    repeats = []
    for prompt in prompts:
        repeats.append(seen[prompt.id])
        seen[prompt.id] += 1
    return repeats


def _slots(
    prompts: Sequence[Prompt], guidance_lengths: Sequence[Sequence[int]]
) -> list[tuple[int, Prompt, int, int]]:
    """(group, prompt, member, guidance tokens) of each rollout."""
    return [
        (group, prompt, member, length)
        for group, (prompt, lengths) in enumerate(zip(prompts, guidance_lengths, strict=True))
        for member, length in enumerate(lengths)
    ]


def _rollout(
    group: int,
    prompt: Prompt,
    member: int,
    length: int,
    completion: Completion,
    text_of: ResponseText,
    guidance_in_loss: bool,
) -> Rollout:
    response_ids = prompt.trace_ids[:length] + completion.token_ids
    mask = np.ones(len(response_ids), dtype=np.bool_)
    mask[:length] = guidance_in_loss
    logp = np.full(len(response_ids), np.nan, dtype=np.float32)
    logp[length:] = completion.logp
    return Rollout(
        prompt=prompt,
        group=group,
        member=member,
        training_prompt_ids=prompt.token_ids,
        sampling_prompt_ids=prompt.token_ids,
        response_ids=response_ids,
        guidance_len=length,
        loss_mask=mask,
        rollout_logp=logp,
        text=text_of(response_ids, length),
        finish_reason=completion.finish_reason,
        weight_version=completion.weight_version,
        token_versions=completion.token_versions,
    )
