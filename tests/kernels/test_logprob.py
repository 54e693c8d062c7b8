"""logprob and linear_logprob: values and gradients against float64, on rows that are easy to get wrong."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from g2rpo_kernels import LogProb, linear_logprob, logprob
from g2rpo_kernels.logprob.checks import Impl
from torch import Tensor

from budget import assert_within_budget, draws
from logit_rows import SCALINGS, LargestTensor, rows, weighted


def textbook(logits: Tensor, target: Tensor, temperature: float, softcap: float | None) -> LogProb:
    """Softmax written out, without any of torch's fused ops."""
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    z = logits / temperature
    lse = z.amax(1) + (z - z.amax(1, keepdim=True)).exp().sum(1).log()
    logp = z - lse[:, None]
    plogp = torch.where(logp == -torch.inf, 0.0, logp.exp() * logp.masked_fill(logp == -torch.inf, 0.0))
    return LogProb(logp[torch.arange(len(target)), target], -plogp.sum(1), lse)


def with_gradients(
    op: Callable[..., LogProb], leaves: tuple[Tensor, ...], dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """(logp, entropy, lse, gradients of all leaves) of `op` on the leaves in `dtype`."""
    leaves = tuple(leaf.detach().to(dtype).requires_grad_() for leaf in leaves)
    out = op(*leaves)
    return *(x.detach() for x in out), *torch.autograd.grad(weighted(out), leaves)


@pytest.mark.parametrize(("temperature", "softcap"), SCALINGS)
@pytest.mark.parametrize("impl", ["reference", "cpu"])
def test_logprob_equals_textbook_in_float64(impl: Impl, temperature: float, softcap: float | None) -> None:
    logits, target = rows("plain", 9, 101)
    for kind in ("plain", "up", "down", "confident", "equal"):
        logits, target = rows(kind, 9, 101)
        got = with_gradients(
            lambda x: logprob(x, target, temperature=temperature, softcap=softcap, impl=impl),  # noqa: B023
            (logits,),
            torch.float64,
        )
        want = with_gradients(
            lambda x: textbook(x, target, temperature, softcap),  # noqa: B023
            (logits,),
            torch.float64,
        )
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("impl", ["reference", "cpu"])
def test_logprob_absolute_values(impl: Impl) -> None:
    logits = torch.tensor([[0.0, math.log(3.0)], [1.0, 1.0]], dtype=torch.float64)
    out = logprob(logits, torch.tensor([1, 0]), impl=impl)
    torch.testing.assert_close(
        out.logp_T, torch.tensor([math.log(0.75), math.log(0.5)]).double(), atol=1e-7, rtol=0
    )
    assert float(out.entropy_T[0]) == pytest.approx(0.5623351446188083, abs=1e-14)
    assert float(out.entropy_T[1]) == pytest.approx(math.log(2), abs=1e-14)
    assert float(out.lse_T[0]) == pytest.approx(math.log(4), abs=1e-14)


@pytest.mark.parametrize(("temperature", "softcap"), SCALINGS)
@pytest.mark.parametrize("vocab", [2, 40, 1009, 4093])
@pytest.mark.parametrize("kind", ["plain", "up", "down", "confident", "equal"])
def test_logprob_cpu_float32_within_budget(
    kind: str, vocab: int, temperature: float, softcap: float | None
) -> None:
    logits, target = rows(kind, 33, vocab)

    def run(impl: Impl, dtype: torch.dtype) -> tuple[Tensor, ...]:
        def op(x: Tensor) -> LogProb:
            return logprob(x, target, temperature=temperature, softcap=softcap, impl=impl)

        return with_gradients(op, (logits,), dtype)

    eagers = draws(lambda: run("reference", torch.float32))
    assert_within_budget(run("cpu", torch.float32), eagers, run("reference", torch.float64))


@pytest.mark.parametrize("impl", ["reference", "cpu"])
def test_logprob_impossible_tokens_have_no_gradient(impl: Impl) -> None:
    logits, target = rows("impossible", 8, 37)
    logp, entropy, lse, gradient = with_gradients(
        lambda x: logprob(x, target, impl=impl), (logits,), torch.float64
    )
    want = with_gradients(lambda x: textbook(x, target, 1.0, None), (logits,), torch.float64)
    for got, true in zip((logp, entropy, lse), want[:3], strict=True):
        torch.testing.assert_close(got, true, rtol=1e-12, atol=1e-12)
    assert torch.isfinite(gradient).all()
    assert (gradient[logits == -torch.inf] == 0).all()
    assert gradient.abs().max() > 0.01


def test_logprob_confident_target_keeps_its_gradient_digits() -> None:
    logits, target = rows("confident", 4, 1009)
    logits.requires_grad_()
    logprob(logits, target, impl="cpu").logp_T.sum().backward()
    assert logits.grad is not None
    at_target = logits.grad[torch.arange(4), target].double()
    # 1 - p(target), exactly from the float32 logits.
    want = 1 - torch.softmax(logits.detach().double(), 1)[torch.arange(4), target]
    assert float(want[0]) == pytest.approx(1e-3, rel=1e-4)
    torch.testing.assert_close(at_target, want, rtol=4 * torch.finfo(torch.float32).eps, atol=0)


def linear_case(
    num_rows: int = 30, positions: int = 17, width: int = 12, vocab: int = 101
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    leaves = (normal(positions, width), normal(vocab, width), normal(vocab))
    source = torch.randint(positions, (num_rows,), generator=generator)
    return leaves, source, torch.randint(vocab, (num_rows,), generator=generator)


@pytest.mark.parametrize(("temperature", "softcap"), SCALINGS)
@pytest.mark.parametrize("chunk_bytes", [1, 101 * 8 * 7, 1 << 30])
def test_linear_logprob_equals_textbook_for_any_chunk(
    chunk_bytes: int, temperature: float, softcap: float | None
) -> None:
    leaves, source, target = linear_case()

    def op(hidden: Tensor, head: Tensor, bias: Tensor) -> LogProb:
        return linear_logprob(
            hidden,
            head,
            target,
            source_T=source,
            bias_V=bias,
            temperature=temperature,
            softcap=softcap,
            chunk_bytes=chunk_bytes,
            impl="cpu",
        )

    def plain(hidden: Tensor, head: Tensor, bias: Tensor) -> LogProb:
        return textbook(hidden[source] @ head.T + bias, target, temperature, softcap)

    got, want = (with_gradients(f, leaves, torch.float64) for f in (op, plain))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)
    assert all(gradient.abs().max() > 0.1 for gradient in got[3:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_linear_logprob_cpu_within_budget(dtype: torch.dtype) -> None:
    leaves, source, target = linear_case(vocab=1009)
    leaves = (leaves[0].to(dtype), leaves[1].to(dtype), leaves[2].to(dtype))

    def run(impl: Impl, working: torch.dtype) -> tuple[Tensor, ...]:
        def op(hidden: Tensor, head: Tensor, bias: Tensor) -> LogProb:
            return linear_logprob(
                hidden, head, target, source_T=source, bias_V=bias, chunk_bytes=1 << 14, impl=impl
            )

        return with_gradients(op, leaves, working)

    got = run("cpu", dtype)
    assert got[0].dtype == torch.float32
    assert got[3].dtype == dtype
    assert_within_budget(got, draws(lambda: run("reference", dtype)), run("reference", torch.float64))


def test_linear_logprob_never_holds_the_logits() -> None:
    num_rows, width, vocab = 200, 4, 3001
    hidden = torch.randn(num_rows, width, requires_grad=True)
    head = torch.randn(vocab, width, requires_grad=True)
    target = torch.randint(vocab, (num_rows,))
    chunk_bytes = 20 * vocab * 4
    with LargestTensor(hidden, head) as largest:
        linear_logprob(hidden, head, target, chunk_bytes=chunk_bytes, impl="cpu").logp_T.sum().backward()
    assert vocab * width * 4 <= largest.bytes <= chunk_bytes
    with LargestTensor(hidden, head) as eager:
        linear_logprob(hidden, head, target, impl="reference").logp_T.sum().backward()
    assert eager.bytes == num_rows * vocab * 4  # the meter sees logits where there are some


def test_linear_logprob_is_deterministic_and_sources_may_repeat() -> None:
    leaves, _, target = linear_case()
    source = torch.zeros(len(target), dtype=torch.int32)
    source[20:] = 5
    runs = [
        with_gradients(
            lambda h, w, b: linear_logprob(h, w, target, source_T=source, bias_V=b, impl="cpu"),
            leaves,
            torch.float32,
        )
        for _ in range(2)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    touched = runs[0][3].abs().sum(1) > 0
    assert touched.nonzero().squeeze(1).tolist() == [0, 5]


@pytest.mark.parametrize("impl", ["reference", "cpu"])
def test_linear_logprob_of_nothing_is_empty(impl: Impl) -> None:
    hidden, head = torch.randn(4, 3, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    none = torch.zeros(0, dtype=torch.int64)
    out = linear_logprob(hidden, head, none, source_T=none, impl=impl)
    assert out.logp_T.shape == (0,)
    out.logp_T.sum().backward()
    assert head.grad is not None
    assert float(head.grad.abs().sum()) == 0
    assert logprob(torch.zeros(0, 5), none, impl=impl).entropy_T.shape == (0,)


def test_default_impl_is_cpu_below_float64() -> None:
    logits = torch.randn(3, 5)
    target = torch.tensor([0, 1, 4])
    default, cpu = logprob(logits, target), logprob(logits, target, impl="cpu")
    assert torch.equal(default.logp_T, cpu.logp_T)
    x = logits.double().requires_grad_()
    (first,) = torch.autograd.grad(logprob(x, target).logp_T.sum(), x, create_graph=True)
    assert first.requires_grad  # the reference: twice differentiable


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target_T": torch.tensor([0, 7, 1])}, r"target_T: wanted values in \[0, 5\), got 0..7"),
        ({"target_T": torch.tensor([0, 1])}, "target_T: wanted 3 entries, got 2"),
        ({"temperature": 0.0}, "temperature: wanted > 0 and finite, got 0.0"),
        ({"softcap": -1.0}, "softcap: wanted > 0"),
        ({"impl": "cuda"}, "impl: wanted 'reference', 'cpu', 'triton' or None, got 'cuda'"),
        ({"impl": "triton"}, "impl='triton': wanted CUDA tensors, got cpu"),
    ],
)
def test_logprob_names_what_is_wrong(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"target_T": torch.tensor([0, 1, 4])} | change
    with pytest.raises(ValueError, match=message):
        logprob(torch.randn(3, 5), **arguments)
    with pytest.raises(ValueError, match=message):
        linear_logprob(torch.randn(3, 2), torch.randn(5, 2), **arguments)
