"""Row kernels of `logprob` in the interpreter: values and every gradient within the float64 budget."""

from __future__ import annotations

import pytest
import torch
from g2rpo_kernels import LogProb, logprob
from g2rpo_kernels.logprob.checks import Impl
from g2rpo_kernels.logprob.partials import RowPartials, finished
from g2rpo_kernels.logprob.triton import row_gradient_, row_numbers, row_stats
from g2rpo_kernels.logprob.triton_launch import TILES
from torch import Tensor

from budget import assert_within_budget, draws
from logit_rows import KINDS, SCALINGS, rows, weighted

BLOCK = max(tile.block_v for tile in TILES.values())


def run(
    logits: Tensor, target: Tensor, scaling: tuple[float, float | None], impl: Impl, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """(logp, entropy, lse, d logits), a different upstream gradient for each row and output."""
    leaf = logits.to(dtype, copy=True).requires_grad_()
    out = logprob(leaf, target, temperature=scaling[0], softcap=scaling[1], impl=impl)
    return *(x.detach() for x in out), *torch.autograd.grad(weighted(out), leaf)


def check(logits: Tensor, target: Tensor, scaling: tuple[float, float | None]) -> list[Tensor]:
    """Budget of one case, in the dtype of its logits; the kernel's results."""
    got = run(logits, target, scaling, "triton", logits.dtype)
    eagers = draws(lambda: run(logits, target, scaling, "reference", logits.dtype))
    assert got[3].dtype == logits.dtype
    assert_within_budget(got, eagers, run(logits, target, scaling, "reference", torch.float64))
    return list(got)


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("vocab", [2, 1009, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 37])
@pytest.mark.parametrize("kind", KINDS)
def test_logprob_within_budget(kind: str, vocab: int, scaling: tuple[float, float | None]) -> None:
    if kind == "impossible" and vocab == 2:
        vocab = 5
    logits, target = rows(kind, 4, vocab)
    *_, gradient = check(logits, target, scaling)
    assert torch.isfinite(gradient).all()
    if kind == "impossible":
        assert (gradient[logits == -torch.inf] == 0).all()


@pytest.mark.parametrize("count", [40, pytest.param(105, marks=pytest.mark.deep)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_logprob_within_budget_on_random_cases(dtype: torch.dtype, count: int) -> None:
    generator = torch.Generator().manual_seed(5)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    for _ in range(count):
        vocab = number(2, 64) if number(0, 2) else number(64, 3 * BLOCK)
        spread = [0.1, 1.0, 4.0, 12.0][number(0, 4)]
        logits = spread * torch.randn(number(3, 6), vocab, generator=generator) + number(-50, 51)
        target = torch.randint(vocab, (len(logits),), generator=generator)
        scaling = ([0.6, 1.0, 1.0, 1.7][number(0, 4)], [None, None, 30.0][number(0, 3)])
        check(logits.to(dtype), target, scaling)


def test_logprob_takes_any_strides_and_int32_targets() -> None:
    logits, target = rows("plain", 4, 301)
    want = run(logits, target, (1.0, None), "triton", torch.float32)
    wide = torch.full((4, 700), torch.nan)
    wide[:, 5:306] = logits
    every_second = torch.full((4, 602), torch.nan)
    every_second[:, ::2] = logits
    for view in (wide[:, 5:306], every_second[:, ::2], logits.T.contiguous().T):
        assert torch.equal(view, logits)
        leaf = view.detach().requires_grad_()
        out = logprob(leaf, target.int(), impl="triton")
        got = (*(x.detach() for x in out), *torch.autograd.grad(weighted(out), leaf))
        for a, b in zip(got, want, strict=True):
            assert torch.equal(a, b)


def test_rows_beyond_two_to_the_31_elements() -> None:
    """A row stride of 2^30 over a storage whose pages are never touched but for three rows."""
    vocab, stride = 259, 1 << 30
    storage = torch.empty(3 * stride, dtype=torch.float16)
    logits = storage.as_strided((3, vocab), (stride, 1))
    values, target = rows("plain", 3, vocab)
    logits.copy_(values)
    assert 2 * logits.stride(0) >= 1 << 31
    numbers = row_numbers(logits, target, temperature=1.0, softcap=None)
    ones = torch.ones(3)
    given = (target, numbers.lse_T, numbers.entropy_T, ones, ones)
    want = row_gradient_(values.half(), *given, temperature=1.0, softcap=None)
    true = logprob(values.half(), target, impl="reference")
    torch.testing.assert_close(numbers.logp_T, true.logp_T, rtol=1e-6, atol=1e-6)
    row_gradient_(logits, *given, temperature=1.0, softcap=None)
    assert torch.equal(logits, want)
    assert want.abs().max() > 0.1


def test_columns_beyond_two_to_the_31_elements() -> None:
    vocab, stride = 5, 1 << 29
    storage = torch.empty(4 * stride + 2, dtype=torch.float16)
    logits = storage.as_strided((2, vocab), (1, stride))
    values, target = rows("plain", 2, vocab)
    logits.copy_(values)
    assert 4 * stride >= 1 << 31
    numbers = row_numbers(logits, target, temperature=1.0, softcap=None)
    true = logprob(values.half(), target, impl="reference")
    torch.testing.assert_close(numbers.logp_T, true.logp_T, rtol=1e-6, atol=1e-6)


def test_shards_of_a_vocabulary_combine_to_the_whole() -> None:
    logits, target = rows("up", 6, 601)
    bias = torch.randn(601, generator=torch.Generator().manual_seed(1))
    scaling = {"temperature": 0.8, "softcap": 60.0}
    cuts = [(0, 200), (200, 201), (201, 601)]
    local = [torch.where((target >= a) & (target < b), target - a, -1) for a, b in cuts]
    parts = [
        row_stats(logits[:, a:b], own, bias_V=bias[a:b], **scaling)
        for (a, b), own in zip(cuts, local, strict=True)
    ]
    top = torch.stack([part.max_T for part in parts]).amax(0)
    moved = [part.rebased(top) for part in parts]
    whole = RowPartials(
        top,
        sum((part.sumexp_T for part in moved), torch.zeros(6, dtype=torch.float64)),
        sum((part.sum_z_exp_T for part in moved), torch.zeros(6, dtype=torch.float64)),
        torch.stack([part.target_logit_T for part in moved]).amax(0),
    )
    numbers = finished(whole)
    leaf = (logits.double() + bias.double()).requires_grad_()
    true = logprob(leaf, target, impl="reference", **scaling)
    for got, want in zip(numbers, true, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=2e-6, atol=2e-6)
    c, e, g = torch.randn(3, 6, generator=torch.Generator().manual_seed(2))
    loss = (c * true.logp_T + e * true.entropy_T + g * true.lse_T).sum()
    (want,) = torch.autograd.grad(loss, leaf)
    out = torch.full_like(logits, torch.nan)
    for (a, b), own in zip(cuts, local, strict=True):
        given = (logits[:, a:b], own, numbers.lse_T, numbers.entropy_T, c, e)
        row_gradient_(*given, g_T=g, bias_V=bias[a:b], out=out[:, a:b], **scaling)
    torch.testing.assert_close(out.double(), want, rtol=1e-5, atol=1e-6)
    assert want.abs().max() > 0.1


def test_gradient_over_the_logits_equals_gradient_beside_them() -> None:
    logits, target = rows("plain", 5, BLOCK + 77)
    numbers = row_numbers(logits, target, temperature=1.0, softcap=None)
    c = torch.tensor([1.0, 0.0, -2.0, 0.0, 0.5])
    e = torch.tensor([0.0, 0.0, 1.0, 0.0, -1.0])
    given = (target, numbers.lse_T, numbers.entropy_T, c, e)
    beside = torch.full_like(logits, torch.nan)
    row_gradient_(logits, *given, temperature=1.0, softcap=None, out=beside)
    assert row_gradient_(logits, *given, temperature=1.0, softcap=None) is logits
    assert torch.equal(logits, beside)
    assert (beside[[1, 3]] == 0).all()
    assert beside[[0, 2, 4]].abs().amax(1).min() > 0.1


def test_rows_without_gradient_are_zero_even_from_nan() -> None:
    logits, target = rows("plain", 2, 33)
    logits[1] = torch.nan
    leaf = logits.clone().requires_grad_()
    out = logprob(leaf, target, impl="triton")
    assert out.logp_T.isnan().tolist() == [False, True]
    (gradient,) = torch.autograd.grad(out.logp_T[0], leaf)
    assert (gradient[1] == 0).all()
    assert gradient[0].abs().max() > 0.01


def test_nothing_is_empty() -> None:
    logits = torch.zeros(0, 5, requires_grad=True)
    out = logprob(logits, torch.zeros(0, dtype=torch.int64), impl="triton")
    (gradient,) = torch.autograd.grad(out.logp_T.sum(), logits)
    assert gradient.shape == (0, 5)


def test_backward_cannot_be_differentiated() -> None:
    logits, target = rows("plain", 2, 9)
    leaf = logits.requires_grad_()
    out: LogProb = logprob(leaf, target, impl="triton")
    (gradient,) = torch.autograd.grad(out.logp_T.sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError):
        gradient.sum().backward()


def test_row_kernels_name_what_is_wrong() -> None:
    target = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"logits_TV: wanted one of .* got torch.float64"):
        logprob(torch.zeros(2, 3, dtype=torch.float64), target, impl="triton")
    with pytest.raises(ValueError, match="wanted 1 to 2\\*\\*31 - 1 columns, got 0"):
        row_stats(torch.zeros(2, 0), target, temperature=1.0, softcap=None)
