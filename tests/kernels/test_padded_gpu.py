"""Losses on padded batches in bfloat16, against the formulas in float64; on a GPU, and also on a CPU.

Error budget: see `budget`; eager is the formulas in float32 on bfloat16 products or logits.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from g2rpo_kernels import GRPOOptions, grpo_loss, token_logprobs
from g2rpo_kernels.padded.options import Level, LossType
from torch import Tensor

from budget import assert_within_budget, draws
from drawn import normal
from padded_batches import CLIPPED, NUM_ITEMS, TEMPERATURE, B, Batch, fused_loss, textbook

ON_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DEVICES = ["cpu", pytest.param("cuda", marks=ON_GPU)]
LENGTH, WIDTH, VOCAB = 33, 64, 1003
HALF = torch.bfloat16
CLIPS = (0.8, 1.28)
LOG_RATIOS = torch.tensor([-0.6, -0.35, -0.1, 0.1, 0.4, 0.75], dtype=torch.float64)
LEVELS: list[tuple[Level, LossType]] = [
    ("token", "grpo"),
    ("token", "dapo"),
    ("token", "cispo"),
    ("token", "sapo"),
    ("token", "vespo"),
]
LEVELS.extend(("sequence", name) for name in CLIPPED if name != "bnpo")
Run = Callable[[], tuple[Tensor, ...]]


def batch(device: str, dtype: torch.dtype) -> Batch:
    """Hidden states, head and bias are bfloat16 numbers, of `dtype`; the rest is float32 at least."""
    hidden, head, bias = (
        (0.3 * normal(*shape, seed=seed)).to(HALF).double()
        for seed, shape in enumerate([(B, LENGTH, WIDTH), (VOCAB, WIDTH), (VOCAB,)])
    )
    ids = torch.randint(VOCAB, (B, LENGTH), generator=torch.Generator().manual_seed(3))
    logp = torch.log_softmax((hidden @ head.T + bias) / TEMPERATURE, -1).gather(-1, ids[..., None])[..., 0]
    mask = (torch.arange(LENGTH) < torch.tensor([33, 1, 20, 0, 13, 27])[:, None]).long()
    ref = logp + 0.4 * normal(B, LENGTH, seed=5)
    old = (
        logp
        - LOG_RATIOS[torch.randint(len(LOG_RATIOS), logp.shape, generator=torch.Generator().manual_seed(4))]
    )
    mean_B = ((logp - old) * mask).sum(1) / mask.sum(1).clamp(min=1)
    for ratio in (LOG_RATIOS.exp(), mean_B.exp()):
        assert min(float((ratio - edge).abs().min()) for edge in CLIPS) > 0.02  # rounding crosses none
    ratio = torch.where(mask == 1, (0.5 * normal(B, LENGTH, seed=6)).exp().clamp(max=1.5), 1.0)
    advantages = torch.tensor([1.3, -0.7, 0.0, -1.9, 0.8, -0.2])
    wide = torch.promote_types(dtype, torch.float32)
    return Batch(
        hidden=hidden.to(device, dtype),
        head=head.to(device, dtype),
        bias=bias.to(device, dtype),
        ids=ids.to(device),
        mask=mask.to(device),
        advantages=advantages.to(device, wide),
        old=old.to(device, wide),
        ref=ref.to(device, wide),
        ratio=ratio.to(device, wide),
    )


def options(level: Level, loss_type: LossType) -> GRPOOptions:
    high = 0.9 if loss_type == "cispo" else CLIPS[1] - 1
    return GRPOOptions(
        loss_type=loss_type, importance_sampling_level=level, epsilon_high=high, beta=0.1, entropy_coef=0.03,
        max_completion_length=40,
    )  # fmt: skip


def value_and_gradients(loss_of: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    loss = loss_of(*leaves)
    return loss.detach(), *torch.autograd.grad(3 * loss, leaves)


def assert_kept(ours: Run, eager: Run, exact: Run) -> None:
    """The budget, and the same bits twice."""
    got, again, truth = ours(), ours(), exact()
    assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))
    assert_within_budget(got, draws(eager), truth, terms=0.5, dtype=HALF)
    assert all(x.abs().max() > 0 for x in truth)


@pytest.mark.parametrize(("level", "loss_type"), LEVELS)
@pytest.mark.parametrize("device", DEVICES)
def test_fused_losses_in_bfloat16_keep_the_budget(device: str, level: Level, loss_type: LossType) -> None:
    o = options(level, loss_type)

    def ours() -> tuple[Tensor, ...]:
        b = batch(device, HALF)
        return value_and_gradients(fused_loss(b, o, False, b.ratio, NUM_ITEMS), b.hidden, b.head, b.bias)

    def plain(dtype: torch.dtype) -> tuple[Tensor, ...]:
        b = batch(device, dtype)

        def loss_of(hidden: Tensor, head: Tensor, bias: Tensor) -> Tensor:
            return textbook(b, wide(hidden @ head.T + bias), o, False, b.ratio, NUM_ITEMS)

        return value_and_gradients(loss_of, b.hidden, b.head, b.bias)

    assert_kept(ours, lambda: plain(HALF), lambda: plain(torch.float64))


@pytest.mark.parametrize(("level", "loss_type"), LEVELS)
@pytest.mark.parametrize("device", DEVICES)
def test_losses_from_logits_in_bfloat16_keep_the_budget(
    device: str, level: Level, loss_type: LossType
) -> None:
    o = options(level, loss_type)

    def logits_of(b: Batch, dtype: torch.dtype) -> Tensor:
        return (b.hidden.double() @ b.head.double().T).to(HALF).to(dtype)

    def ours() -> tuple[Tensor, ...]:
        b = batch(device, HALF)

        def loss_of(logits: Tensor) -> Tensor:
            return grpo_loss(
                logits, b.ids, b.mask, advantages=b.advantages, old_logp=b.old, ref_logp=b.ref,
                importance_ratio=b.ratio, num_items_in_batch=NUM_ITEMS, options=o, temperature=TEMPERATURE,
            ).loss  # fmt: skip

        return value_and_gradients(loss_of, logits_of(b, HALF))

    def plain(dtype: torch.dtype) -> tuple[Tensor, ...]:
        b = batch(device, dtype)
        return value_and_gradients(
            lambda logits: textbook(b, wide(logits), o, False, b.ratio, NUM_ITEMS), logits_of(b, dtype)
        )

    assert_kept(ours, lambda: plain(HALF), lambda: plain(torch.float64))


@pytest.mark.parametrize("num_ids", [1, 3])
@pytest.mark.parametrize("device", DEVICES)
def test_token_logprobs_in_bfloat16_keep_the_budget(device: str, num_ids: int) -> None:
    generator = torch.Generator().manual_seed(7)
    logits = (3 * torch.randn(6, 33, 1003, generator=generator)).to(HALF).to(device)
    ids = torch.randint(1003, (6, 33, num_ids), generator=generator).to(device)
    keep = (torch.arange(33) % 4 > 0).expand(6, -1).to(device)

    def run(dtype: torch.dtype, plain: bool) -> tuple[Tensor, ...]:
        leaf = logits.to(dtype, copy=True).requires_grad_()
        if plain:
            logp = torch.log_softmax(wide(leaf) / TEMPERATURE, -1).gather(-1, ids) * keep[..., None]
        else:
            logp = token_logprobs(leaf, ids, TEMPERATURE, row_mask=keep)
        grad = torch.autograd.grad((logp * logp.detach()).sum(), leaf)[0]
        return logp.detach(), grad

    got, again = run(HALF, False), run(HALF, False)
    assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))
    assert_within_budget(got, draws(lambda: run(HALF, True)), run(torch.float64, True), dtype=HALF)


def wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
