"""Losses on padded batches against TRL's formulas written out, in float64, and the ways not to use them.

Dimension key: B sequences, L positions of each, D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from g2rpo_kernels import FusedLinearGRPOLoss, GRPOOptions, grpo_loss, grpo_loss_of_logps, token_logprobs
from g2rpo_kernels.logprob.checks import Impl
from g2rpo_kernels.padded.options import Level, LossType
from torch import Tensor

from budget import Tolerance
from drawn import normal
from padded_batches import (
    LEVELS,
    NUM_ITEMS,
    TEMPERATURE,
    B,
    Batch,
    L,
    V,
    fused_loss,
    fused_of,
    make_batch,
    textbook,
    value_and_gradients,
)

EPS = Tolerance(rtol=1e-10, atol=1e-12)


def padded_losses(b: Batch, o: GRPOOptions, on_policy: bool, ratio: Tensor | None, num: float | None):
    """The loss from logits and from log-probabilities, as functions of the leaves."""
    given = {
        "advantages": b.advantages,
        "old_logp": None if on_policy else b.old,
        "ref_logp": b.ref if o.beta else None,
        "importance_ratio": ratio,
        "num_items_in_batch": num,
        "options": o,
    }

    def of_logits(hidden: Tensor, head: Tensor, bias: Tensor) -> Tensor:
        return grpo_loss(hidden @ head.T + bias, b.ids, b.mask, temperature=TEMPERATURE, **given).loss

    def of_logps(hidden: Tensor, head: Tensor, bias: Tensor) -> Tensor:
        logp_BLV = torch.log_softmax((hidden @ head.T + bias) / TEMPERATURE, -1)
        logps, entropies = logp_BLV.gather(-1, b.ids[..., None])[..., 0], -(logp_BLV.exp() * logp_BLV).sum(-1)
        return grpo_loss_of_logps(logps, b.mask, entropies=entropies, **given).loss

    return of_logits, of_logps


VARIANTS: list[tuple[dict[str, Any], bool]] = [
    ({}, True),
    ({"beta": 0.1}, False),
    ({"beta": 0.1, "use_bias_correction_kl": True}, True),
    ({"beta": 0.1, "use_bias_correction_kl": True, "entropy_coef": 0.03}, False),
    ({"entropy_coef": 0.03}, True),
]
"""Settings, and whether there are importance ratios and a given number of items."""


@pytest.mark.parametrize(("level", "loss_type"), LEVELS)
@pytest.mark.parametrize("on_policy", [True, False])
def test_every_loss_type_equals_the_textbook(level: Level, loss_type: LossType, on_policy: bool) -> None:
    b = make_batch()
    for variant, with_ratio in VARIANTS:
        o = GRPOOptions(
            loss_type=loss_type,
            importance_sampling_level=level,
            max_completion_length=9,
            epsilon_high=0.9 if loss_type == "cispo" else 0.28,
            delta=1.4 if loss_type == "dapo" else None,
            **variant,
        )
        case = (b, o, on_policy, b.ratio if with_ratio else None, NUM_ITEMS if with_ratio else None)

        def plain(hidden: Tensor, head: Tensor, bias: Tensor) -> Tensor:
            return textbook(b, hidden @ head.T + bias, *case[1:])  # noqa: B023

        want = value_and_gradients(b, plain)
        assert want[2].abs().max() > 1e-3
        fused = [fused_loss(*case, impl=impl, chunk_bytes=3 * V * 8) for impl in ("reference", "cpu")]
        for loss_of in (*padded_losses(*case), *fused):
            for got, true in zip(value_and_gradients(b, loss_of), want, strict=True):
                torch.testing.assert_close(got, true, **EPS)


def test_values_by_hand() -> None:
    """Two tokens at r = 1.5, A = 2, and in another row one at r = 0.5, A = -1: all clipped."""
    logps = torch.log(torch.tensor([[0.6, 0.6, 0.9], [0.2, 0.3, 0.3]], dtype=torch.float64))
    old = torch.log(torch.tensor([[0.4, 0.4, 0.9], [0.4, 0.3, 0.3]], dtype=torch.float64))
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    values: dict[LossType, float] = {
        "grpo": -0.8,
        "bnpo": -4.0 / 3,
        "dr_grpo": -0.2,
        "luspo": -2.0,
        "dapo": -0.4,
    }
    for loss_type, value in values.items():
        out = grpo_loss_of_logps(
            logps,
            mask,
            advantages=torch.tensor([2.0, -1.0], dtype=torch.float64),
            old_logp=old,
            num_items_in_batch=10,
            options=GRPOOptions(loss_type=loss_type, max_completion_length=10),
        )
        # Clipped terms: -(1.2 * 2) twice and +0.8.
        assert float(out.loss) == pytest.approx(value, abs=1e-14)
        assert [float(x) for x in out.stats["clipped"]] == [3.0, 3.0]
        assert out.logp_BL.shape == out.entropy_BL.shape == (2, 3)


@pytest.mark.parametrize(("level", "loss_type"), LEVELS)
def test_masked_positions_have_no_influence_even_as_nan(level: Level, loss_type: LossType) -> None:
    b = make_batch()
    out = b.mask == 0
    nan = b.hidden.masked_fill(out[..., None], torch.nan)
    noisy = replace(
        b,
        hidden=nan,
        ids=b.ids.masked_fill(out, -100),
        old=b.old.masked_fill(out, torch.nan),
        ref=b.ref.masked_fill(out, torch.nan),
        ratio=b.ratio if loss_type == "vespo" else b.ratio.masked_fill(out, torch.nan),
    )
    o = GRPOOptions(
        loss_type=loss_type,
        importance_sampling_level=level,
        beta=0.1,
        entropy_coef=0.1,
        max_completion_length=9,
    )
    want = value_and_gradients(b, fused_loss(b, o, False, b.ratio, None))
    got = value_and_gradients(noisy, fused_loss(noisy, o, False, noisy.ratio, None))
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert (got[1][out] == 0).all()
    of_logits = padded_losses(noisy, o, False, noisy.ratio, None)[0]
    assert float(value_and_gradients(noisy, of_logits)[0]) == pytest.approx(float(want[0]), abs=1e-12)


@pytest.mark.parametrize("on_policy", [False, True])
def test_vespo_multiplies_the_importance_ratios_of_masked_positions_too(on_policy: bool) -> None:
    b, o = make_batch(), GRPOOptions(loss_type="vespo")
    counted, masked = b.ratio.clone(), b.ratio.clone()
    assert b.mask[2].tolist()[2:4] == [1, 0]
    counted[2, 2] *= 0.5
    masked[2, 3] = 0.5
    row_2 = replace(b, advantages=torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0, 0.0], dtype=torch.float64))
    values = [
        float(value_and_gradients(row_2, loss(row_2, o, on_policy, ratio, None))[0])
        for loss in (fused_loss, lambda *given: padded_losses(*given)[0])
        for ratio in (counted, masked, b.ratio)
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-12)
    assert values[3:] == pytest.approx(values[:3], rel=1e-12)
    assert abs(values[1] / values[2] - 1) > 0.01


def test_metrics_are_means_over_the_counted_positions() -> None:
    b = make_batch()
    mask = b.mask.double()
    logp_BLV = torch.log_softmax((b.hidden @ b.head.T + b.bias) / TEMPERATURE, -1)
    logp = logp_BLV.gather(-1, b.ids[..., None])[..., 0]
    r, a = (logp - b.old).exp(), b.advantages[:, None]
    clipped = ((r < 0.8) & (a < 0)) | ((r > 1.2) & (a > 0))
    means = [
        (x * mask).sum() / mask.sum()
        for x in (
            torch.exp(b.ref - logp) - (b.ref - logp) - 1,
            -(logp_BLV.exp() * logp_BLV).sum(-1),
            clipped.double(),
        )
    ]
    given = (b.hidden, b.head, b.ids, b.mask, b.advantages, b.bias, b.ref, b.old)
    _, metrics = fused_of(GRPOOptions(beta=0.1))(*given)
    assert len(metrics) == 3
    for got, true in zip(metrics, means, strict=True):
        torch.testing.assert_close(got, true, **EPS)
    assert 0 < float(means[2]) < 1
    _, metrics = FusedLinearGRPOLoss(beta=0.0, use_ref_model=False, temperature=TEMPERATURE)(*given)
    assert [float(m) for m in metrics] == pytest.approx([float(means[2])])


def test_rewards_become_advantages_of_consecutive_groups() -> None:
    b = make_batch()
    logits = b.hidden @ b.head.T
    rewards = torch.tensor([1.0, 0.0, 0.5, 2.0, 2.0, 5.0])
    half = 0.5 / (0.5 + 1e-4)  # rewards 1, 0, 0.5: standard deviation 0.5
    high = 2 / (3**0.5 + 1e-4)  # rewards 2, 2, 5: standard deviation sqrt(3)
    by_hand = torch.tensor([half, -half, 0, -high / 2, -high / 2, high], dtype=torch.float64)
    one = grpo_loss(logits, b.ids, b.mask, rewards=rewards, group_size=3)
    other = grpo_loss(logits, b.ids, b.mask, advantages=by_hand)
    assert float(one.loss) == pytest.approx(float(other.loss), abs=1e-12)
    assert float(one.loss) != 0
    channels = torch.stack([rewards / 4, 3 * rewards / 4], 1)
    two = grpo_loss(logits, b.ids, b.mask, rewards=channels, group_size=3)
    assert float(two.loss) == pytest.approx(float(one.loss), abs=1e-12)


@pytest.mark.parametrize("loss_type", ["dapo", "cispo", "vespo", "dr_grpo"])
def test_micro_batches_add_up(loss_type: LossType) -> None:
    b = make_batch()
    o = GRPOOptions(loss_type=loss_type, max_completion_length=9, epsilon_high=1.2)

    def loss(rows: slice) -> Tensor:
        logits = (b.hidden @ b.head.T)[rows]
        total = grpo_loss(
            logits,
            b.ids[rows],
            b.mask[rows],
            advantages=b.advantages[rows],
            old_logp=b.old[rows],
            num_items_in_batch=torch.tensor(15),
            options=o,
        ).loss
        return total * (len(logits) / B if loss_type == "dr_grpo" else 1)

    parts = loss(slice(0, 2)) + loss(slice(2, B))
    torch.testing.assert_close(parts, loss(slice(0, B)), **EPS)


@pytest.mark.parametrize("lead", [(), (4,), (2, 3), (2, 1, 3)])
@pytest.mark.parametrize("impl", ["reference", "cpu"])
def test_token_logprobs_take_any_leading_dimensions(lead: tuple[int, ...], impl: Impl) -> None:
    logits = normal(*lead, V, seed=7).requires_grad_()
    for tokens in ((), (3,)):
        ids = torch.randint(V, (*lead, *tokens), generator=torch.Generator().manual_seed(8))
        index = ids if tokens else ids[..., None]
        want = torch.log_softmax(logits / TEMPERATURE, -1).gather(-1, index).reshape(ids.shape)
        got = token_logprobs(logits, ids, TEMPERATURE, impl=impl)
        torch.testing.assert_close(got, want, **EPS)
        upstream = normal(*ids.shape, seed=9)
        gradients = [torch.autograd.grad(x, logits, upstream, retain_graph=True)[0] for x in (got, want)]
        torch.testing.assert_close(*gradients, **EPS)


def test_token_logprobs_row_mask_and_strides() -> None:
    logits = normal(2, 4, V, seed=7)
    logits[0, 3] = torch.nan
    logits.requires_grad_()
    keep = torch.tensor([[1, 0, 1], [0, 1, 1]])
    ids = torch.randint(V, (2, 3), generator=torch.Generator().manual_seed(8))
    got = token_logprobs(logits[:, :-1], ids.masked_fill(keep == 0, -100), row_mask=keep)
    want = torch.log_softmax(logits.detach()[:, :-1], -1).gather(-1, ids[..., None])[..., 0] * keep
    torch.testing.assert_close(got.detach(), want, **EPS)
    got.sum().backward()
    assert logits.grad is not None
    assert (logits.grad.abs().sum(-1) > 0).tolist() == [
        [True, False, True, False],
        [False, True, True, False],
    ]


def test_token_logprobs_of_narrow_logits_are_float32() -> None:
    logits = normal(3, V, seed=7).bfloat16().requires_grad_()
    got = token_logprobs(logits, torch.tensor([0, 1, 2]))
    want = torch.log_softmax(logits.detach().double(), -1)[torch.arange(3), torch.arange(3)]
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.detach().double(), want, rtol=0, atol=8 * torch.finfo(torch.float32).eps)
    got.sum().backward()
    assert logits.grad is not None
    assert logits.grad.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss_type": "ppo"}, "loss_type: wanted one of"),
        (
            {"loss_type": "cispo", "importance_sampling_level": "sequence"},
            "importance_sampling_level: wanted",
        ),
        ({"loss_type": "dr_grpo"}, "max_completion_length: wanted > 0"),
        ({"delta": 0.5}, "delta: wanted >= 1"),
        ({"epsilon_low": 1.0}, r"epsilon_low: wanted in \[0, 1\), as the clip is 1 - epsilon_low, got 1.0"),
        ({"epsilon_low": -0.1, "loss_type": "luspo"}, "epsilon_low: wanted in"),
        ({"epsilon_high": -0.1}, "epsilon_high: wanted >= 0, got -0.1"),
        ({"loss_type": "vespo", "vespo_k_pos": 0.0}, "vespo_k_pos: wanted > 0 and finite, got 0.0"),
        ({"entropy_coef": torch.nan}, "entropy_coef: wanted a finite number, got nan"),
        (
            {"loss_type": "sapo", "sapo_temperature_neg": 0.0},
            "sapo_temperature_neg: wanted > 0 and finite, got 0.0",
        ),
        (
            {"loss_type": "cispo", "epsilon_high": 0.0},
            "epsilon_high: wanted > 0 with loss_type='cispo', whose cap it is, got 0.0",
        ),
        ({"beta": -0.1}, "beta: wanted >= 0 and finite, got -0.1"),
        (
            {
                "loss_type": "luspo",
                "importance_sampling_level": "sequence",
                "beta": 0.1,
                "use_bias_correction_kl": True,
                "luspo_over_padding": True,
            },
            "luspo_over_padding: wanted False",
        ),
    ],
)
def test_options_out_of_range_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GRPOOptions(**settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"advantages": None}, "advantages, rewards: wanted one of them"),
        ({"rewards": torch.ones(B)}, "advantages, rewards: wanted one of them"),
        (
            {"advantages": None, "rewards": torch.ones(B), "group_size": 4},
            "group_size: wanted a divisor of 6",
        ),
        ({"advantages": torch.ones(B - 1)}, "advantages: wanted \\[6\\]"),
        ({"advantages": torch.ones(B, dtype=torch.int64)}, "advantages: wanted .* floating"),
        ({"old_logp": torch.ones(B, L + 1)}, "old_logp: wanted \\[6, 5\\]"),
        ({"importance_ratio": torch.ones(B, 2)}, "importance_ratio: wanted"),
        ({"ref_logp": torch.ones(B, L)}, "ref_logp: wanted if and only if beta is not 0, got a tensor"),
        ({"options": GRPOOptions(beta=0.1)}, "ref_logp: wanted if and only if beta is not 0, got None"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change: dict, message: str) -> None:
    b = make_batch()
    given: dict[str, Any] = {"advantages": b.advantages} | change
    with pytest.raises(ValueError, match=message):
        grpo_loss(b.hidden @ b.head.T, b.ids, b.mask, **given)


def test_fused_linear_names_what_is_missing() -> None:
    b = make_batch()
    given = (b.hidden, b.head, b.ids, b.mask, b.advantages)
    with pytest.raises(ValueError, match="wanted one with use_ref_model=True, got none"):
        FusedLinearGRPOLoss()(*given)
    with pytest.raises(ValueError, match="_input: wanted \\[6, 5, 'D'\\]"):
        FusedLinearGRPOLoss(use_ref_model=False)(b.hidden[:, 1:], *given[1:])
    with pytest.raises(ValueError, match=r"selected_token_ids: wanted \[6, 5\] int64 or int32, got \[6, 4\]"):
        FusedLinearGRPOLoss(use_ref_model=False)(b.hidden, b.head, b.ids[:, 1:], b.mask, b.advantages)
    with pytest.raises(ValueError, match="entropies: wanted with entropy_coef"):
        grpo_loss_of_logps(b.old, b.mask, advantages=b.advantages, options=GRPOOptions(entropy_coef=0.1))


@pytest.mark.parametrize(("level", "loss_type"), LEVELS)
def test_an_empty_mask_is_a_zero_loss(level: Level, loss_type: LossType) -> None:
    b = replace(make_batch(), mask=torch.zeros(B, L, dtype=torch.bool))
    o = GRPOOptions(
        loss_type=loss_type, importance_sampling_level=level, entropy_coef=0.1, max_completion_length=9
    )
    loss, *gradients = value_and_gradients(b, fused_loss(b, o, False, b.ratio, None))
    assert float(loss) == 0.0
    assert all((g == 0).all() for g in gradients)
