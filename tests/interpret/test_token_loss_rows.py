"""`token_loss` with Triton's row kernels, interpreted: random losses in float32 and float16, and products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from g2rpo_kernels import linear_logprob, token_loss
from g2rpo_kernels.linear_logprob import triton_exponentials
from g2rpo_kernels.logprob.checks import Impl
from torch import Tensor
from torch.nn.functional import pad

from budget import WorstErrors, draws
from launched import kernel_names
from products import Work
from random_losses import Problem, outcome
from token_losses import BATCH, ROWS, D, T, V, example, of_batch, of_rows, of_tokens, with_entropy

NUM_CASES = 18
CHUNK = 6 * 4 * V * 2
"""chunk_bytes: float16 in parts of 2 edges and chunks of 20; float32 in chunks of 12."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_random_losses_within_budget(dtype: torch.dtype) -> None:
    errors = WorstErrors(dtype)
    for seed in range(NUM_CASES):
        p = Problem(seed, most_rows=3, most_length=4)
        chunk_bytes = p.draw.one(None, p.chunk_rows * len(p.values[1]) * 4)
        hidden, head, bias, learnt = leaves = p.leaves(dtype)
        options = p.options(bias_V=bias, impl="triton", chunk_bytes=chunk_bytes)
        loss = token_loss(hidden, head, p.target, p.closing_over(learnt), **options).loss
        eagers = draws(lambda: p.by_the_book(dtype))  # noqa: B023
        p.compare(errors, outcome(loss, leaves), eagers, p.by_the_book(torch.float64))
    errors.check()


def gradients(
    loss: Callable, dtype: torch.dtype, impl: Impl, *, wider: int = 0, **options: Any
) -> tuple[Tensor, ...]:
    """`wider`: columns of zeros beside the D of hidden states and head."""
    *given, target = example(torch.float16)
    hidden, head = leaves = [pad(leaf.detach().to(dtype), (0, wider)).requires_grad_() for leaf in given]
    return outcome(token_loss(hidden, head, target, loss, impl=impl, **options).loss, leaves)


FLOAT16, BFLOAT16 = torch.float16, torch.bfloat16


@pytest.mark.parametrize(
    ("loss", "options", "dtype", "chunk_bytes", "number"),
    [
        (of_tokens, {}, torch.float32, CHUNK, 3),
        (of_rows, ROWS, torch.float32, CHUNK, 3),
        (of_batch, BATCH, torch.float32, CHUNK, 4),
        (of_tokens, {}, BFLOAT16, CHUNK, 3),
        (with_entropy, {}, BFLOAT16, CHUNK, 3),
        (of_rows, ROWS, BFLOAT16, CHUNK, 3),
        (of_rows, ROWS, BFLOAT16, CHUNK // 5, 4),
        (lambda logp, h: of_batch(logp, h) + h.mean(), BATCH, BFLOAT16, 2 * CHUNK, 4),
        (of_tokens, {}, FLOAT16, CHUNK, 4),
        (of_tokens, {}, FLOAT16, 2 * CHUNK, 3),
        (with_entropy, {}, FLOAT16, 2 * CHUNK, 4),
    ],
)
def test_number_of_products(
    loss: Callable, options: dict, dtype: torch.dtype, chunk_bytes: int, number: int
) -> None:
    with Work() as work:
        got = gradients(loss, dtype, "triton", chunk_bytes=chunk_bytes, **options)
    assert work.products == number * T * V * D
    want = gradients(loss, torch.float64, "reference", **options)
    assert want[2].abs().max() > 1e-3
    eps = 16 * torch.finfo(dtype).eps  # of rounded operands, too
    for value, true in zip(got, want, strict=True):
        torch.testing.assert_close(value.double(), true, rtol=eps, atol=eps * float(true.abs().max()))


@pytest.mark.parametrize("chunk_bytes", [CHUNK, CHUNK // 5])
@pytest.mark.parametrize(
    ("loss", "options"), [(of_tokens, {}), (with_entropy, {}), (of_rows, ROWS), (of_batch, BATCH)]
)
def test_losses_from_exponentials(
    loss: Callable, options: dict, chunk_bytes: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits of half operands that stay on the chip, as on Hopper."""
    monkeypatch.setattr(triton_exponentials, "LEAST_COLUMNS", 1)
    names = kernel_names(monkeypatch)
    got = gradients(loss, FLOAT16, "triton", wider=-D % 8, chunk_bytes=chunk_bytes, **options)
    assert {"exponential_kernel", "tile_gradient_kernel"} <= set(names)
    assert "gradient_kernel" not in names
    want = gradients(loss, torch.float64, "reference", wider=-D % 8, **options)
    eps = 16 * torch.finfo(FLOAT16).eps
    for value, true in zip(got, want, strict=True):
        torch.testing.assert_close(value.double(), true, rtol=eps, atol=eps * float(true.abs().max()))


def test_look_saves_the_fourth_product() -> None:
    hidden, head, target = example(torch.float16)
    known = linear_logprob(hidden.detach(), head.detach(), target, impl="triton")
    given = {"ties": "batch", "impl": "triton", "chunk_bytes": CHUNK}
    want = outcome(token_loss(hidden, head, target, of_batch, **given).loss, [hidden, head])
    with Work() as work:
        look = (known.logp_T, known.entropy_T)
        got = outcome(token_loss(hidden, head, target, of_batch, look=look, **given).loss, [hidden, head])
    assert work.products == 3 * T * V * D
    for value, true in zip(got, want, strict=True):
        torch.testing.assert_close(value, true, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, FLOAT16, BFLOAT16])
def test_entropy_that_matters_at_some_values_only(dtype: torch.dtype) -> None:
    def loss(logp_T: Tensor, entropy_T: Tensor) -> Tensor:
        total = of_tokens(logp_T, entropy_T)
        return total if bool((logp_T == -1).all()) else total - 0.3 * entropy_T.mean()

    got = gradients(loss, dtype, "triton", chunk_bytes=CHUNK)
    want = gradients(loss, torch.float64, "reference")
    eps = 16 * torch.finfo(dtype).eps
    for value, true in zip(got, want, strict=True):
        torch.testing.assert_close(value.double(), true, rtol=eps, atol=eps * float(true.abs().max()))


def test_weights_too_small_for_float16_keep_their_gradients() -> None:
    def small(logp_T: Tensor, entropy_T: Tensor) -> Tensor:
        return 1e-7 * with_entropy(logp_T, entropy_T)

    _, *want = gradients(with_entropy, torch.float64, "reference")
    hidden, head, target = example(FLOAT16)
    loss = token_loss(hidden, head, target, small, impl="triton", chunk_bytes=CHUNK).loss
    for value, true in zip(torch.autograd.grad(3e7 * loss, (hidden, head)), want, strict=True):
        torch.testing.assert_close(value.double(), true, rtol=0.02, atol=0.02 * float(true.abs().max()))


def test_backward_runs_again_with_another_gradient() -> None:
    hidden, head, target = example(torch.float32)
    loss = token_loss(hidden, head, target, with_entropy, impl="triton").loss
    one = torch.autograd.grad(loss, (hidden, head), retain_graph=True)
    three = torch.autograd.grad(3 * loss, (hidden, head))
    for a, b in zip(one, three, strict=True):
        assert a.abs().max() > 0
        torch.testing.assert_close(3 * a, b)


@pytest.mark.parametrize("dtype", [torch.float32, FLOAT16])
def test_no_edges(dtype: torch.dtype) -> None:
    hidden, head, _ = example(dtype)
    none = torch.zeros(0, dtype=torch.int64)
    for ties in ("token", "batch"):
        out = token_loss(
            hidden, head, none, lambda logp, h: (logp + h).sum(), ties=ties, source_T=none, impl="triton"
        )
        (found,) = torch.autograd.grad(out.loss, head)
        assert not found.any()


def test_ties_are_found_out() -> None:
    for dtype in (torch.float32, BFLOAT16):
        with pytest.raises(ValueError, match="ties='token': wanted a loss that ties no more together"):
            gradients(of_batch, dtype, "triton", chunk_bytes=CHUNK)
