"""Values that no loss can be made of: nothing where the mask is 0; else an error, or NaN where none can look.

Dimension key: B sequences, L positions of each.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from g2rpo_kernels import Edges, GRPOOptions, Objective, grpo_loss_of_logps, policy_loss_of_logps
from g2rpo_kernels.padded.options import Level, LossType
from torch import Tensor

from drawn import normal
from padded_batches import LEVELS, B, Batch, L, fused_loss, make_batch, value_and_gradients

GARBAGE = [torch.nan, torch.inf, -torch.inf]
COUNTED, MASKED = (2, 1), (2, 4)
"""Positions of the batch."""


def options_of(level: Level, loss_type: LossType, **more: Any) -> GRPOOptions:
    settings = {"loss_type": loss_type, "importance_sampling_level": level, "max_completion_length": 9}
    return GRPOOptions(**settings | more)


def arguments(b: Batch) -> dict[str, Tensor]:
    """Of `grpo_loss_of_logps` with beta, one number a token."""
    return {
        "logps": b.old + 0.1 * normal(B, L, seed=8),
        "mask": b.mask,
        "advantages": b.advantages[:, None].expand(B, L).contiguous(),
        "old_logp": b.old,
        "ref_logp": b.ref,
        "importance_ratio": b.ratio,
        "num_items_in_batch": torch.tensor(31.0, dtype=torch.float64),
    }


def spoilt(value: Tensor, bad: float, at: tuple[int, ...]) -> Tensor:
    value = value.clone()
    value[at] = bad
    return value


@pytest.mark.parametrize(("level", "loss_type"), LEVELS)
@pytest.mark.parametrize("bad", GARBAGE)
def test_garbage_outside_the_mask_does_nothing(level: Level, loss_type: LossType, bad: float) -> None:
    options = options_of(level, loss_type, beta=0.1)
    given = arguments(make_batch())
    want = grpo_loss_of_logps(**given, options=options).loss
    assert want.abs() > 1e-3
    names = ["advantages", "old_logp", "ref_logp"]
    if loss_type != "vespo" or bad != bad:
        names.append("importance_ratio")  # of vespo, whose ratio is over all positions, NaN alone counts as 1
    noisy = {name: spoilt(given[name], bad, MASKED) for name in names}
    for logps in (given["logps"], spoilt(given["logps"], bad, MASKED)):
        leaf = logps.clone().requires_grad_()
        loss = grpo_loss_of_logps(**given | noisy | {"logps": leaf}, options=options).loss
        torch.testing.assert_close(loss.detach(), want, rtol=0, atol=0)
        assert torch.autograd.grad(loss, leaf)[0].isfinite().all()


CASES: list[dict[str, Any]] = [
    {"loss_type": "dapo"},
    {"loss_type": "grpo", "delta": 1.5, "entropy_coef": 0.1},
    {"loss_type": "bnpo", "importance_sampling_level": "sequence", "use_bias_correction_kl": True},
    {"loss_type": "cispo"},
    {"loss_type": "sapo"},
    {"loss_type": "vespo"},
    {"loss_type": "luspo", "luspo_over_padding": True},
]


@pytest.mark.slow
@pytest.mark.parametrize("settings", CASES, ids=[case["loss_type"] for case in CASES])
def test_a_value_at_fault_is_named_or_makes_the_loss_nan(settings: dict[str, Any]) -> None:
    """`torch.compile` cannot look at values, no more than a GPU may: there the loss is NaN."""
    torch.compiler.reset()
    options = GRPOOptions(beta=0.1, **settings)
    entropies = torch.ones(B, L, dtype=torch.float64)

    def loss(**given: Any) -> Tensor:
        return grpo_loss_of_logps(**given, entropies=entropies, options=options).loss

    blind = torch.compile(loss, backend="eager", fullgraph=True)
    given = arguments(make_batch())
    torch.testing.assert_close(blind(**given), loss(**given), rtol=1e-12, atol=0)
    faults = [(name, bad) for name in ("advantages", "old_logp", "ref_logp") for bad in GARBAGE]
    faults += [("importance_ratio", bad) for bad in (torch.nan, torch.inf, -0.5)]
    for name, bad in faults:
        wrong = given | {name: spoilt(given[name], bad, COUNTED)}
        assert not blind(**wrong).isfinite(), (name, bad)
        where = "sequence 2, position 1, which mask counts"
        with pytest.raises(ValueError, match=f"^{name}: wanted .*finite, got {bad:g} at {where}"):
            loss(**wrong)
    if options.loss_type in ("dapo", "cispo", "vespo"):
        for bad in (0.0, -1.0, torch.nan):
            wrong = given | {"num_items_in_batch": torch.tensor(bad)}
            assert blind(**wrong).isnan()
            with pytest.raises(ValueError, match=f"^num_items_in_batch: wanted > 0 .*, got {bad:g}"):
                loss(**wrong)


def test_log_probabilities_of_nan_are_a_loss_of_nan() -> None:
    """The policy's own: the training loop's guard sees it, as in any loss."""
    given = arguments(make_batch())
    logps = spoilt(given["logps"], torch.nan, COUNTED)
    assert grpo_loss_of_logps(**given | {"logps": logps}, options=GRPOOptions(beta=0.1)).loss.isnan()


@pytest.mark.parametrize("num_items", [0, 0.0, torch.tensor(0)])
def test_a_batch_that_counts_nothing_has_no_items(num_items: Any) -> None:
    given = arguments(make_batch()) | {"mask": torch.zeros(B, L), "num_items_in_batch": num_items}
    leaf = given["logps"].clone().requires_grad_()
    loss = grpo_loss_of_logps(**given | {"logps": leaf}, options=GRPOOptions(beta=0.1)).loss
    assert loss.item() == 0
    assert (torch.autograd.grad(loss, leaf)[0] == 0).all()


@pytest.mark.parametrize(("level", "loss_type"), LEVELS)
def test_the_linear_loss_sees_what_the_plain_one_sees(level: Level, loss_type: LossType) -> None:
    b, options = make_batch(), options_of(level, loss_type, beta=0.1)
    garbage = replace(
        b,
        hidden=spoilt(b.hidden, torch.nan, MASKED),
        old=spoilt(b.old, torch.inf, MASKED),
        ref=spoilt(b.ref, -torch.inf, MASKED),
        ratio=spoilt(b.ratio, torch.nan, MASKED),
    )
    want = value_and_gradients(b, fused_loss(b, options, False, b.ratio, 31.0))
    got = value_and_gradients(garbage, fused_loss(garbage, options, False, garbage.ratio, 31.0))
    for value, true in zip(got, want, strict=True):
        torch.testing.assert_close(value.nan_to_num(), true.nan_to_num(), rtol=1e-12, atol=1e-14)
    hidden = spoilt(b.hidden, torch.nan, COUNTED)
    assert fused_loss(b, options, False, b.ratio, 31.0)(hidden, b.head, b.bias).isnan()
    names = {"old": "old_per_token_logps", "ref": "ref_per_token_logps", "ratio": "vllm_is_ratio"}
    for change, name in names.items():
        wrong = replace(b, **{change: spoilt(getattr(b, change), torch.nan, COUNTED)})
        with pytest.raises(ValueError, match=f"^{name}: wanted .*finite, got nan at sequence 2, position 1"):
            fused_loss(wrong, options, False, wrong.ratio, 31.0)(b.hidden, b.head, b.bias)


@pytest.mark.parametrize("size", [3, 64])
@pytest.mark.parametrize("surrogate", ["clip", "cispo", "sapo", "reinforce"])
def test_bounds_keep_nan(size: int, surrogate: str) -> None:
    """In vectors and in their tail."""
    for at in (0, size - 1):
        one_T = torch.ones(size)
        given = Edges(one_T, one_T, one_T, -one_T)
        logp_T = spoilt(-torch.ones(size), torch.nan, (at,))
        assert policy_loss_of_logps(logp_T, given, Objective(surrogate=surrogate)).loss.isnan()
