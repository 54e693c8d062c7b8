"""Sweeps over rows of logits in C++ and in torch: sums and gradients, both within the budget of float64."""

from __future__ import annotations

import pytest
import torch
from g2rpo_kernels import _cpu
from g2rpo_kernels.logprob import sweeps
from g2rpo_kernels.logprob.partials import RowPartials
from g2rpo_kernels.logprob.rows import RowGradients, RowStats, exp_factors, finish_stats, squash_
from torch import Tensor

from budget import assert_within_budget, draws
from logit_rows import KINDS, SCALINGS

WIDTHS = [1, 2, 15, 16, 17, 511, 512, 513, 4093]
"""Around a vector's 16 lanes and a block's 512 logits."""


def rows(kind: str, width: int, num_rows: int = 9) -> tuple[Tensor, Tensor]:
    """float32 logits of one awkward kind, targets in every part of a row."""
    generator = torch.Generator().manual_seed(width)
    logits_CV = 3 * torch.randn(num_rows, width, generator=generator)
    target_C = torch.randint(width, (num_rows,), generator=generator)
    target_C[0], target_C[1] = 0, width - 1
    if kind == "up":
        logits_CV += 50
    if kind == "down":
        logits_CV -= 50
    if kind == "equal":
        logits_CV.fill_(2.5)
    if kind == "confident":
        logits_CV[torch.arange(num_rows), target_C] = 30.0
    if kind == "impossible":
        logits_CV[:, 1::3] = -torch.inf
        target_C = target_C // 3 * 3
    return logits_CV, target_C


def upstream_of(num_rows: int, *, entropy: bool = True, dtype: torch.dtype = torch.float32) -> RowGradients:
    generator = torch.Generator().manual_seed(3)
    c_C, e_C, g_C = torch.randn(3, num_rows, generator=generator).to(dtype)
    return RowGradients(c_C, e_C, g_C) if entropy else RowGradients(c_C)


def in_torch(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(sweeps, "EXTENSION", "g2rpo_kernels._absent")
    return monkeypatch


def swept(
    logits_CV: Tensor,
    target_C: Tensor,
    scaling: tuple[float, float | None],
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, ...]:
    """(statistics, d logits)."""
    held_CV = squash_(logits_CV.to(dtype, copy=True), scaling[1])
    stats = finish_stats(sweeps.chunk_partials(held_CV, target_C, *scaling))
    given = upstream_of(len(target_C), dtype=dtype)
    out_CV = torch.full_like(held_CV, torch.nan)
    sweeps.chunk_dlogits(held_CV, target_C, stats, given, *scaling, out_CV=out_CV)
    return *stats, out_CV


def gradient_of_logp(logits_CV: Tensor, target_C: Tensor, temperature: float) -> Tensor:
    """d logp / d logits in float64: -p beside the target, and the sum of the others' p at it."""
    exp_CV = ((logits_CV - logits_CV.amax(1, keepdim=True)).double() / temperature).exp()
    others_CV = exp_CV.scatter(1, target_C[:, None], 0.0)
    gradient_CV = -others_CV.scatter(1, target_C[:, None], -others_CV.sum(1, keepdim=True))
    return gradient_CV / (exp_CV.sum(1, keepdim=True) * temperature)


def test_the_extension_is_installed_and_takes_float32() -> None:
    assert sweeps.extension_for(torch.zeros(2, 5)) is _cpu
    assert sweeps.extension_for(torch.zeros(2, 5).double()) is None
    assert sweeps.extension_for(torch.zeros(5, 2).T) is None
    assert sweeps.extension_for(torch.zeros(0, 5)) is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scaling", SCALINGS)
def test_float32_is_as_near_to_float64_as_torch_is(
    kind: str, scaling: tuple[float, float | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for width in WIDTHS:
        problem = rows(kind, width)
        native = swept(*problem, scaling)
        with monkeypatch.context() as patch:
            in_torch(patch)
            eagers = draws(lambda: swept(*problem, scaling))  # noqa: B023
            truth = swept(*problem, scaling, torch.float64)
        assert_within_budget(native, eagers, truth)
        if kind == "impossible" and width > 1:
            assert (native[-1][:, 1::3] == 0).all()


@pytest.mark.parametrize("native", [True, False], ids=["c++", "torch"])
@pytest.mark.parametrize("kind", KINDS)
def test_kept_exponentials_are_the_gradient_but_for_a_factor(
    kind: str, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not native:
        in_torch(monkeypatch)
    for width in (3, 40, 513):
        logits_CV, target_C = rows(kind, width)
        upstream = upstream_of(len(target_C), entropy=False)
        held_CV = logits_CV.clone()
        stats = finish_stats(sweeps.chunk_partials(held_CV, target_C, 0.7, None, keep_exp=True))
        got_CV = held_CV * exp_factors(stats, upstream, 0.7)[:, None]
        want_CV = gradient_of_logp(logits_CV, target_C, 0.7) * upstream.c_C.double()[:, None]
        # A logit of -71 is known to 4e-6.
        torch.testing.assert_close(got_CV.double(), want_CV, rtol=2e-5, atol=1e-35)
        assert want_CV.abs().max() > 1e-20


def test_a_confident_rows_rest_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """1 - p would be 0 in float32; the sum without the target is not."""
    logits_CV = torch.tensor([[30.0, 0.0, 1.0]])
    wanted = torch.tensor([-30.0, -29.0]).double().exp().sum()
    partials = sweeps.chunk_partials(logits_CV, torch.tensor([0]), 1.0, None)
    assert float(partials.sumexp_T) == pytest.approx(float(wanted), rel=3e-7)
    in_torch(monkeypatch)
    assert float(sweeps.chunk_partials(logits_CV, torch.tensor([0]), 1.0, None).sumexp_T) == pytest.approx(
        float(wanted), rel=3e-7
    )


def test_rows_of_any_stride_and_number_of_threads_give_the_same_bits() -> None:
    logits_CV, target_C = rows("plain", 1009, num_rows=37)
    wide_CV = torch.full((37, 2000), torch.nan)
    wide_CV[:, :1009] = logits_CV
    wanted = swept(logits_CV, target_C, (0.7, None))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(5)
        held_CV = wide_CV[:, :1009]
        stats = finish_stats(sweeps.chunk_partials(held_CV, target_C, 0.7, None))
        sweeps.chunk_dlogits(held_CV, target_C, stats, upstream_of(37), 0.7, None, out_CV=held_CV)
    finally:
        torch.set_num_threads(threads)
    for got, value in zip((*stats, held_CV), wanted, strict=True):
        assert torch.equal(got, value)
    assert wide_CV[:, 1009:].isnan().all()


@pytest.mark.parametrize("native", [True, False], ids=["c++", "torch"])
def test_targets_elsewhere_leave_every_column_in(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not native:
        in_torch(monkeypatch)
    logits_CV, _ = rows("plain", 40)
    target_C = torch.tensor([-1, 3, -1, 0, 39, -1, 1, 2, -1])
    partials = sweeps.chunk_partials(logits_CV.clone(), target_C, 1.0, None, some_elsewhere=True)
    exact_CV = (logits_CV - logits_CV.amax(1, keepdim=True)).double().exp()
    for row, target in enumerate(target_C.tolist()):
        total = exact_CV[row].sum() - (exact_CV[row, target] if target >= 0 else 0)
        assert float(partials.sumexp_T[row]) == pytest.approx(float(total), rel=1e-6)
        assert (float(partials.target_logit_T[row]) == -torch.inf) == (target < 0)
    logp_C, entropy_C = torch.randn(2, 9)
    stats = RowStats(logp_C, entropy_C, partials.max_T, partials.sumexp_T.log())
    out_CV = logits_CV.clone()
    given = (stats, upstream_of(9), 1.0, None)
    sweeps.chunk_dlogits(out_CV, target_C, *given, some_elsewhere=True, out_CV=out_CV)
    assert torch.isfinite(out_CV).all()
    assert (out_CV[target_C < 0] != 0).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_logits_that_are_no_numbers_are_not_hidden(bad: float) -> None:
    for column in (0, 15, 16, 39):
        logits_CV, target_C = rows("plain", 40)
        logits_CV[4, column] = bad
        stats = finish_stats(sweeps.chunk_partials(logits_CV, target_C, 1.0, None))
        assert stats.logp_C.isfinite().tolist() == [row != 4 for row in range(9)]


def test_bad_arguments_are_refused_before_memory_is_touched() -> None:
    held, target, values = torch.zeros(2, 5).numpy(), torch.tensor([0, 5]).numpy(), torch.zeros(2).numpy()
    with pytest.raises(IndexError, match="wanted -1 or a column, got 5 in row 1"):
        _cpu.row_sums(held, target, 1.0, False, values, values, values, values, 1)
    short = torch.zeros(1).numpy()
    with pytest.raises(ValueError, match="an entry for each row"):
        _cpu.row_sums(held, target[:1] * 0, 1.0, False, values, values, values, values, 1)
    with pytest.raises(ValueError, match="an entry for each row"):
        _cpu.row_sums(held, target * 0, 1.0, False, short, values, values, values, 1)
    with pytest.raises(ValueError, match="rows without gaps"):
        _cpu.row_sums(torch.zeros(5, 2).T.numpy(), target * 0, 1.0, False, values, values, values, values, 1)
    narrow = torch.zeros(2, 4).numpy()
    with pytest.raises(ValueError, match="the shape of the logits"):
        _cpu.row_gradients(held, target * 0, 1.0, False, values, values, values, None, values, narrow, 1)


def test_no_rows_have_no_sums() -> None:
    partials = sweeps.chunk_partials(torch.zeros(0, 5), torch.zeros(0, dtype=torch.long), 1.0, None)
    assert isinstance(partials, RowPartials)
    assert [len(value) for value in partials] == [0, 0, 0, 0]
