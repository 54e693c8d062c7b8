"""Padded batches on Triton's kernels, interpreted: every loss type, against the reference in float64.

The budget (see `budget`) holds in the mean over loss, metrics, gradients and draws: the error of a single
number is luck.
"""

from __future__ import annotations

import pytest
import torch
from g2rpo_kernels import FusedLinearGRPOLoss, GRPOOptions, grpo_loss, token_logprobs
from g2rpo_kernels.logprob.checks import Impl
from g2rpo_kernels.padded.options import Level, LossType
from torch import Tensor

from budget import assert_within_budget, draws
from padded_batches import LEVELS, TEMPERATURE, Batch, V, fused_of, make_batch

ALL_ON = {"beta": 0.1, "use_bias_correction_kl": True, "entropy_coef": 0.03}
VARIANTS = [({}, True), (ALL_ON, False), (ALL_ON, False), ({"beta": 0.1}, False)]
"""Settings, and whether there are importance ratios; each on a batch of its own."""


def options(level: Level, loss_type: LossType, variant: dict) -> GRPOOptions:
    high = 0.9 if loss_type == "cispo" else 0.28
    sizes = {"max_completion_length": 9, "epsilon_high": high}
    return GRPOOptions(loss_type=loss_type, importance_sampling_level=level, **sizes, **variant)


def cast(b: Batch, dtype: torch.dtype) -> tuple[Tensor, ...]:
    return tuple(x.float().to(dtype) for x in (b.hidden, b.head, b.bias, b.advantages, b.old, b.ref, b.ratio))


def of_hidden(b: Batch, o: GRPOOptions, with_ratio: bool, dtype: torch.dtype, impl: Impl) -> list[Tensor]:
    """Loss, metrics and gradients of the fused linear loss."""
    hidden, head, bias, advantages, old, ref, ratio = cast(b, dtype)
    leaves = [x.requires_grad_() for x in (hidden, head, bias)]
    made: FusedLinearGRPOLoss = fused_of(o, impl=impl, chunk_bytes=4 * 6 * V * 2)
    given = (hidden, head, b.ids, b.mask, advantages, bias, ref, old)
    loss, metrics = made(*given, vllm_is_ratio=ratio if with_ratio else None)
    return [loss.detach(), *metrics, *torch.autograd.grad(2 * loss, leaves)]


def of_logits(b: Batch, o: GRPOOptions, with_ratio: bool, dtype: torch.dtype, impl: Impl) -> list[Tensor]:
    """The same of the loss from logits."""
    hidden, head, bias, advantages, old, ref, ratio = cast(b, dtype)
    logits = (hidden.double() @ head.double().T + bias.double()).float().to(dtype).requires_grad_()
    out = grpo_loss(
        logits,
        b.ids,
        b.mask,
        advantages=advantages,
        old_logp=old,
        ref_logp=ref if o.beta else None,
        importance_ratio=ratio if with_ratio else None,
        options=o,
        temperature=TEMPERATURE,
        impl=impl,
    )
    return [out.loss.detach(), *torch.autograd.grad(2 * out.loss, logits)]


def relative(value: Tensor, true: Tensor) -> float:
    return float((value.double() - true).abs().max() / true.abs().max())


@pytest.mark.parametrize("run", [of_hidden, of_logits])
@pytest.mark.parametrize(("level", "loss_type"), LEVELS)
def test_every_loss_type_is_within_budget(level: Level, loss_type: LossType, run) -> None:
    errors = []
    for seed, (variant, with_ratio) in enumerate(VARIANTS if run is of_hidden else VARIANTS[:2]):
        case = (make_batch(seed), options(level, loss_type, variant), with_ratio)
        truth = run(*case, torch.float64, "reference")
        eagers = draws(lambda: run(*case, torch.float32, "reference"))  # noqa: B023
        got = run(*case, torch.float32, "triton")
        assert all(x.dtype == torch.float32 for x in got)
        seen = [index for index, true in enumerate(truth) if true.any()]
        assert seen[0] == 0
        errors += [[relative(side[index], truth[index]) for side in (got, *eagers)] for index in seen]
    of_got, *of_eager = torch.tensor(errors).mean(0).tolist()
    assert of_got <= 2 * sum(of_eager) / len(of_eager) + torch.finfo(torch.float32).eps


def test_token_logprobs_within_budget() -> None:
    logits = 3 * torch.randn(2, 3, 1001, generator=torch.Generator().manual_seed(0))
    ids = torch.randint(1001, (2, 3), generator=torch.Generator().manual_seed(1))
    truth = torch.log_softmax(logits.double(), -1).gather(-1, ids[..., None])[..., 0]
    eagers = draws(lambda: [torch.log_softmax(logits, -1).gather(-1, ids[..., None])[..., 0]])
    assert_within_budget([token_logprobs(logits, ids, impl="triton")], eagers, [truth])
