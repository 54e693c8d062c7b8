"""Supervised warm start of the embedded model: next-token cross-entropy on perfect transcripts.

The slice that reinforcement learning works on is rare in the mix, so that the model ends where rewards are
sparse: about one success in a hundred samples without guidance, ten times that with half of the trace given.

Dimension key: R rows of a batch, S positions (longest row, right-padded), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedTokenizerBase, Qwen3ForCausalLM

from g2rpo_fast.embedded.task import draw_digits, response_text, selection_sort_row
from g2rpo_fast.embedded.tokenizer import EOS_ID, PAD_ID
from g2rpo_fast.types import Report

LENGTHS = (2, 3, 4, 5) * 6 + (6, 7, 8)
"""Lengths of the numbers, uniformly: 8 is 1 in 27."""
BATCH_ROWS = 64
PEAK_LR = 2.5e-3
WARMUP_STEPS = 30
FINAL_LR_FRACTION = 0.1
IGNORED = -100


def batches(
    tokenizer: PreTrainedTokenizerBase, exclude: Collection[str], *, seed: int, empty_thoughts: float = 0.0
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless (ids_RS, target_RS), int64; targets are next tokens of the response, -100 elsewhere.

    A share `empty_thoughts` of the rows has no trace: thought dropout.
    """
    rng = np.random.default_rng([seed, 1])
    while True:
        rows = []
        while len(rows) < BATCH_ROWS:
            row = selection_sort_row(draw_digits(rng, int(rng.choice(LENGTHS))))
            if row["prompt"] not in exclude:
                empty = empty_thoughts > 0 and rng.random() < empty_thoughts
                rows.append({**row, "trace": ""} if empty else row)
        yield collate(tokenizer, rows)


def collate(
    tokenizer: PreTrainedTokenizerBase, rows: list[dict[str, str]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """One batch of (ids_RS, target_RS). Right padding needs no mask: a causal model never looks there."""
    texts = [
        (tokenizer.encode(row["prompt"]), [*tokenizer.encode(response_text(row)), EOS_ID]) for row in rows
    ]
    width = max(len(prompt) + len(response) for prompt, response in texts) - 1
    ids_RS = torch.full((len(rows), width), PAD_ID, dtype=torch.int64)
    target_RS = torch.full((len(rows), width), IGNORED, dtype=torch.int64)
    for r, (prompt, response) in enumerate(texts):
        sequence = torch.tensor(prompt + response)
        ids_RS[r, : len(sequence) - 1] = sequence[:-1]
        target_RS[r, len(prompt) - 1 : len(sequence) - 1] = sequence[len(prompt) :]
    return ids_RS, target_RS


def learning_rate(step: int, num_steps: int) -> float:
    """Linear warm-up, then linear decay to a tenth. `step` counts from 0."""
    warmup = min(1.0, (step + 1) / WARMUP_STEPS)
    decay = 1.0 - (1.0 - FINAL_LR_FRACTION) * step / max(num_steps, 1)
    return PEAK_LR * warmup * decay


def warm_start(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    *,
    num_steps: int,
    seed: int,
    exclude: Collection[str],
    empty_thoughts: float = 0.0,
    report: Callable[[str], None],
    ticks: Report | None = None,
) -> list[float]:
    """Trains `model` in place and returns the loss (nats a token) of every step.

    Prompts in `exclude` (held out, or kept for reinforcement learning) are never seen. A share
    `empty_thoughts` of the transcripts has no trace.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, betas=(0.9, 0.95), weight_decay=0.01)
    stream = batches(tokenizer, exclude, seed=seed, empty_thoughts=empty_thoughts)
    losses: list[float] = []
    model.train()
    for step in range(num_steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, num_steps)
        ids_RS, target_RS = next(stream)
        logits_RSV = model(input_ids=ids_RS, use_cache=False).logits
        loss = F.cross_entropy(logits_RSV.flatten(0, 1), target_RS.flatten(), ignore_index=IGNORED)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if ticks is not None:
            ticks(step + 1)
        if (step + 1) % 20 == 0 or step + 1 == num_steps:
            report(f"warm start {step + 1}/{num_steps}: loss {losses[-1]:.3f} nats/token")
    model.eval()
    return losses
