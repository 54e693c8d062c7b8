"""Does a new engine compute what the trainer computes? A few sampled tokens tell.

Catches what no error reports: a weight that did not arrive (a stale tied head moves log-probabilities by
nats), a slot read at the wrong place, another model. Rounding stays far below the bounds.

Dimension key: N sampled tokens of the probe.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from g2rpo_fast.types import Completion, EngineError, Floats, Request

NUM_PROMPTS, PROMPT_LEN, NUM_TOKENS = 4, 6, 12
BOUNDS = {
    # |log p - log p| (nats): mean, maximum. Float32 kernels differ by rounding alone, 2e-6 on tiny models.
    # bfloat16: mean 5e-3 on tiny models, single tokens up to 0.24 with harsh weights. Quantised weights are
    # other weights: mean 0.06 measured. A wrong weight moves the mean by far more than these.
    "float32": (1e-4, 1e-3),
    "bfloat16": (0.05, 1.0),
    "quantised": (0.4, 4.0),
}


def probe_requests(vocabulary: int, max_len: int) -> list[Request]:
    """Short prompts of tokens from all over the vocabulary; the same every time."""
    ids = np.random.default_rng(0).integers(0, vocabulary, (NUM_PROMPTS, PROMPT_LEN))
    length = min(PROMPT_LEN, max_len - 1)
    return [
        Request(
            prompt_ids=tuple(row[:length].tolist()), max_tokens=min(NUM_TOKENS, max_len - length), seed=seed
        )
        for seed, row in enumerate(ids)
    ]


def check_probe(completions: Sequence[Completion], wanted: Sequence[Floats], kind: str) -> None:
    """EngineError unless the engine's log-probabilities are the trainer's up to rounding of this kind."""
    difference_N = np.abs(np.concatenate([c.logp for c in completions]) - np.concatenate(list(wanted)))
    mean, largest = BOUNDS[kind]
    if not (difference_N.mean() <= mean and difference_N.max() <= largest):
        raise EngineError(
            f"vLLM engine: wanted the trainer's log-probabilities within {mean:g} on average and {largest:g} "
            f"at most ({kind}), got {difference_N.mean():.3g} and {difference_N.max():.3g}: it does not "
            "compute with the weights that it was sent"
        )
