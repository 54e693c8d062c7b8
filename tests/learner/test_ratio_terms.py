"""Terms that change the ratio or its bounds: against formulas written out on padded rows; their limits."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
import torch
from torch import Tensor

from g2rpo_fast.objective.terms import (
    Clip,
    ConfidentClip,
    ElasticClip,
    EntropyBand,
    EvenClip,
    HybridClip,
    Own,
    TraceClip,
)
from g2rpo_fast.objective.terms.trace_clip import discounted
from g2rpo_fast.pieces import Term, Tokens
from padded_terms import Case, Padded, assert_updates_equal, minimum, unit_of

D = torch.float64


def traced(x: Padded, trace: str) -> Tensor:
    length = x.mask.shape[1]
    first = x.mask.long().argmax(1)
    factor = torch.zeros(len(x.mask), length, length, dtype=D)
    for row, start in enumerate(first.tolist()):
        for t in range(start, length):
            for j in range(start, t + 1):
                late = 0.8 ** (t - j)
                factor[row, t, j] = late if trace == "recent" else max(late, 0.8 ** (j - start))
    ratio = (factor @ x.log_ratio(x.old)[..., None])[..., 0].exp()
    return -x.sum(minimum(ratio, x.advantage, 0.02, 0.03))


def product(x: Padded) -> Tensor:
    """TRL's RLOO: the mean over rows of the clipped ratio of whole sequences."""
    ratio = torch.where(x.mask, x.log_ratio(x.old), 0.0).sum(1, keepdim=True).exp()
    return -x.sum(minimum(ratio, x.advantage, 0.02, 0.03).expand_as(x.logp))


def by_unit(x: Padded) -> Tensor:
    ratio = torch.ones_like(x.logp)
    log_ratio = x.log_ratio(x.old)
    for row, mask in enumerate(x.mask):
        at = mask.nonzero()[:, 0]
        unit = torch.from_numpy(unit_of(len(at)))
        for number in set(unit.tolist()):
            ratio[row, at[unit == number]] = log_ratio[row, at[unit == number]].mean().exp()
    return -x.sum(minimum(ratio, x.advantage, 0.02, 0.03))


def nothing(logp_N: Tensor, entropy_N: Tensor, tokens: Tokens) -> Tensor:
    """Keeps the loss from the kernels."""
    return 0 * logp_N.sum()


def confident(x: Padded) -> Tensor:
    weight = (2 * ((9 * x.old.exp()).sigmoid() - 0.25)).clamp(1.0, 1.4)
    return -x.sum(minimum(weight * x.log_ratio(x.old).exp(), x.advantage, 0.2, 0.3))


def hybrid(x: Padded, guided: bool) -> Tensor:
    log_ratio = x.log_ratio(x.old)
    whole = (x.row_mean(log_ratio).detach()[:, None] + x.logp - x.logp.detach()).exp()
    mix: Tensor | float = 0.7
    if guided:
        low = torch.where(x.mask, x.entropy.detach(), torch.inf).amin(1, keepdim=True)
        high = torch.where(x.mask, x.entropy.detach(), -torch.inf).amax(1, keepdim=True)
        mix = (x.entropy.detach() - low) / (high - low)
    token = minimum(log_ratio.exp(), x.advantage, 0.02, 0.03)
    return -x.sum(mix * token + (1 - mix) * minimum(whole, x.advantage, 0.01, 0.02))


def elastic(x: Padded) -> Tensor:
    share = torch.stack([x.reward_R[x.group_R == group].mean() for group in x.group_R])[:, None]
    wider = (1 + 2 * x.advantage.abs().clamp(max=0.3)) * (1 + 4 * share * (1 - share))
    return -x.sum(minimum(x.log_ratio(x.old).exp(), x.advantage, 0.01 * wider, 0.02 * wider))


def even(x: Padded) -> Tensor:
    log_ratio = x.log_ratio(x.old)
    known, entropy = log_ratio.detach()[x.mask], x.entropy.detach()
    edges = np.quantile(entropy[x.mask].numpy(), [1 / 3, 2 / 3])
    place = torch.from_numpy(np.searchsorted(edges, entropy.numpy()))
    made = log_ratio
    for number in range(3):
        part = x.mask & (place == number)
        spread = float(log_ratio.detach()[part].std(unbiased=False))
        scale = float(known.std(unbiased=False)) / spread if spread >= 1e-4 else 1.0
        made = torch.where(part, scale * (log_ratio - log_ratio.detach()[part].mean()), made)
    return -x.sum(minimum(made.exp(), x.advantage, 0.02, 0.03))


def banded(x: Padded) -> Tensor:
    hinge = torch.zeros_like(x.entropy)
    for row, mask in enumerate(x.mask):
        at = mask.nonzero()[:, 0]
        known = x.entropy[row, at].detach().numpy()
        at = at[np.argsort(-known, kind="stable")[: max(1, round(0.6 * len(at)))].copy()]
        known = x.entropy[row, at].detach().numpy()
        high = np.median(known)
        low = max(0.0, high - max(1.4826 * np.median(np.abs(known - high)), 1e-6))
        h = x.entropy[row, at]
        hinge[row, at] = 0.5 * torch.relu(low - h) + 0.8 * torch.relu(h - high)
    return x.sum(hinge)


CASES = {
    "recent trace": Case(
        (TraceClip(decay=0.8, trace="recent", low=0.02, high=0.03),), lambda x: traced(x, "recent")
    ),
    "both traces": Case(
        (TraceClip(decay=0.8, trace="both", low=0.02, high=0.03),), lambda x: traced(x, "both")
    ),
    "ratios of units": Case((Clip(ratio="unit", low=0.02, high=0.03),), by_unit, cut=True),
    "product of ratios": Case((Clip(ratio="product", low=0.02, high=0.03), Own(function=nothing)), product),
    "confidence inside": Case((ConfidentClip(low=0.2, high=0.3),), confident),
    "two levels": Case(
        (HybridClip(share=0.7, sequence_low=0.01, sequence_high=0.02, low=0.02, high=0.03),),
        lambda x: hybrid(x, False),
    ),
    "two levels by entropy": Case(
        (HybridClip(mix="entropy", sequence_low=0.01, sequence_high=0.02, low=0.02, high=0.03),),
        lambda x: hybrid(x, True),
    ),
    "elastic bounds": Case(
        (ElasticClip(low=0.01, high=0.02, by_magnitude=2.0, by_group=1.0, most=0.3),), elastic
    ),
    "standardised ratios": Case((EvenClip(bins=3, least=1e-4, low=0.02, high=0.03),), even),
    "band of entropy": Case((EntropyBand(below=0.5, above=0.8, share=0.6),), banded),
}


@pytest.mark.parametrize("name", CASES)
def test_updates_equal_padded_rows(name: str) -> None:
    assert_updates_equal(CASES[name])


def tokens_of(
    logp: list[list[float]], old: list[list[float]], advantage: list[float]
) -> tuple[Tensor, Tokens]:
    """One group of rows; the mean over sequences."""
    sizes = torch.tensor([len(row) for row in logp])
    row_N = torch.arange(len(logp)).repeat_interleave(sizes)
    logp_N = torch.tensor([*chain(*logp)], dtype=D, requires_grad=True)
    return logp_N, Tokens(
        row_N=row_N,
        group_R=torch.zeros(len(logp), dtype=torch.long),
        num_groups=1,
        advantage_N=torch.tensor(advantage, dtype=D)[row_N],
        weight_N=(1 / (len(logp) * sizes.to(D)))[row_N],
        reward_R=(torch.tensor(advantage) > 0).to(D),
        batch_rows=len(logp),
        batch_groups=1,
        source_R=torch.zeros(len(logp), dtype=torch.long),
        old_logp_N=torch.tensor([*chain(*old)], dtype=D),
        rollout_logp_N=torch.full((len(logp_N),), torch.nan, dtype=D),
    )


LOGP = [[-1.0, -0.5, -2.0, -0.1], [-0.7, -1.5, -0.2]]
OLD = [[-1.1, -0.45, -2.3, -0.1], [-0.9, -1.45, -0.3]]


def loss_and_gradient(term: Term, old: list[list[float]] = OLD) -> tuple[Tensor, Tensor]:
    logp_N, tokens = tokens_of(LOGP, old, [1.5, -0.5])
    entropy_N = torch.linspace(0.2, 1.4, 7, dtype=D)
    loss = term(logp_N, entropy_N, tokens)
    return loss.detach(), torch.autograd.grad(loss, logp_N)[0]


CLIPS_ROWS = Clip(low=0.05, high=0.04, ratio="sequence")


@pytest.mark.parametrize(
    ("term", "limit"),
    [
        (TraceClip(trace="recent", decay=1e-12), Clip()),
        (HybridClip(share=1.0), Clip(high=0.28)),
        (HybridClip(share=0.0, sequence_low=0.05, sequence_high=0.04), CLIPS_ROWS),
        (ElasticClip(by_magnitude=0.0, by_group=0.0), Clip()),
        (EvenClip(bins=1, least=10.0), None),
        (ConfidentClip(least=1.0, most=1.0), Clip()),
        (Clip(ratio="unit", low=0.05, high=0.04), CLIPS_ROWS),
    ],
    ids=lambda term: getattr(term, "use", ""),
)  # fmt: skip
def test_limits_are_the_plain_clip(term: Term, limit: Term | None) -> None:
    if limit is None:  # no scale, and a shift of 0: log-ratios whose mean is 0
        mean = float(np.mean(np.subtract([*chain(*LOGP)], [*chain(*OLD)])))
        old = [[value + mean for value in row] for row in OLD]
        limit = Clip()
    else:
        old = OLD
    for ours, wanted in zip(loss_and_gradient(term, old), loss_and_gradient(limit, old), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    ("trace", "factors"), [("recent", [1.875, 1.75, 1.5, 1.0]), ("both", [4.0, 2.0, 1.5, 1.0])]
)
def test_a_trace_s_first_pass_is_token_credit(trace: str, factors: list[float]) -> None:
    """On-policy the gradient is A / n times the sum over t >= j of the trace: early tokens weigh most."""
    logp_N, tokens = tokens_of([LOGP[0]], [LOGP[0]], [1.0])
    loss = TraceClip(trace=trace, decay=0.5)(logp_N, torch.ones_like(logp_N), tokens)  # pyright: ignore[reportArgumentType]
    (gradient,) = torch.autograd.grad(loss, logp_N)
    np.testing.assert_allclose(gradient, -np.array(factors) / 4, rtol=1e-12)


def test_a_recent_trace_fades() -> None:
    history = discounted(torch.tensor([[0.1, 0.0, 0.0, 0.0]], dtype=D), 0.5)
    np.testing.assert_allclose(history, [[0.1, 0.05, 0.025, 0.0125]], rtol=1e-12)


def test_bounds_are_wider_for_larger_advantages() -> None:
    """[1, 0, 0, 0] has advantages 1.5 and -0.5: 0.3 from 1 is inside the range of the first only."""
    ratios = np.log([1.3, 0.7, 1.0, 1.0]).tolist()
    logp_N, tokens = tokens_of([[r] for r in ratios], [[0.0]] * 4, [1.5, -0.5, -0.5, -0.5])
    values = ElasticClip(by_magnitude=0.5, by_group=0.0).values(logp_N, logp_N, tokens)
    assert values.clipped_plus is not None
    assert values.clipped_minus is not None
    assert not values.clipped_plus[0]  # 1 + 0.2 (1 + 0.75)
    assert values.clipped_minus[1]  # 0.7 < 1 - 0.2 (1 + 0.25)


def test_log_ratios_are_centred_in_every_bin() -> None:
    logp_N, tokens = tokens_of([[0.3, 0.1, -0.2, 0.5], [0.9, 0.4, -0.6, 0.0]], [[0.0] * 4] * 2, [1.0, -1.0])
    entropy_N = torch.arange(8, dtype=D)
    shift_N, scale_N = EvenClip(bins=2).standard(logp_N.detach(), entropy_N, tokens)
    even_N = scale_N * (logp_N.detach() - shift_N)
    for part in (even_N[:4], even_N[4:]):
        assert float(part.mean()) == pytest.approx(0, abs=1e-12)
        assert float(part.std(unbiased=False)) == pytest.approx(
            float(logp_N.detach().std(unbiased=False)), rel=1e-12
        )


def test_the_band_is_the_papers_worked_example() -> None:
    """Entropies .1 .2 .9 1 1.1: centre .9, scale 1.4826 x .2, so low .60348; two are below and two above."""
    logp_N, tokens = tokens_of([[-1.0] * 5], [[-1.0] * 5], [0.0])
    entropy_N = torch.tensor([0.1, 0.2, 0.9, 1.0, 1.1], dtype=D, requires_grad=True)
    loss = EntropyBand(below=0.5, above=0.25, share=1.0)(logp_N, entropy_N, tokens)
    (slope,) = torch.autograd.grad(loss, entropy_N)
    np.testing.assert_allclose(slope * 5, [-0.5, -0.5, 0, 0.25, 0.25], rtol=1e-12)
    low = 0.9 - 1.4826 * 0.2
    wanted = (0.5 * (2 * low - 0.3) + 0.25 * (0.1 + 0.2)) / 5
    assert float(loss.detach()) == pytest.approx(wanted, rel=1e-12)
