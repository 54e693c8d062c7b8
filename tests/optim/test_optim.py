"""Learning-rate schedules, clipping, and the guard against non-finite gradients."""

import math

import pytest
import torch

from g2rpo_fast.optim import OptimConfig, apply_gradients, learning_rate, make_optimizer


def test_learning_rate_warms_up_and_ends_where_it_says():
    config = OptimConfig(lr=1.0, schedule="cosine", warmup_steps=4, min_lr_ratio=0.1)
    rates = [learning_rate(config, step, 105) for step in range(120)]
    assert rates[:4] == [0.2, 0.4, 0.6, 0.8]
    assert rates[4] == 1.0
    assert rates[54] == pytest.approx(0.55)
    assert rates[103] > 0.1
    assert rates[104:] == [0.1] * 16  # the last step, and those of a run that was continued beyond it
    linear = OptimConfig(lr=1.0, schedule="linear", min_lr_ratio=0.0)
    assert learning_rate(linear, 25, 101) == 0.75
    constant = OptimConfig(lr=0.5, schedule="constant")
    assert {learning_rate(constant, step, 10) for step in range(10)} == {0.5}


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize(("warmup", "total"), [(0, 1), (0, 2), (0, 7), (3, 5), (3, 50), (6, 7), (9, 4)])
def test_learning_rate_has_its_peak_after_the_warm_up_and_its_end_at_the_last_step(schedule, warmup, total):
    config = OptimConfig(lr=0.5, schedule=schedule, warmup_steps=warmup, min_lr_ratio=0.25)
    rates = [learning_rate(config, step, total) for step in range(total)]
    assert rates[:warmup] == pytest.approx([0.5 * (s + 1) / (warmup + 1) for s in range(min(warmup, total))])
    if warmup < total:
        assert rates[warmup] == 0.5
    if warmup < total - 1:
        assert rates[-1] == (0.5 if schedule == "constant" else 0.125)
        assert rates[warmup:] == sorted(rates[warmup:], reverse=True)


def test_apply_gradients_clips_to_the_norm():
    layer = torch.nn.Linear(3, 1, bias=False)
    before = layer.weight.detach().clone()
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    layer.weight.grad = torch.tensor([[3.0, 4.0, 0.0]])
    assert apply_gradients(optimizer, lr=2.0, max_grad_norm=1.0) == pytest.approx(5.0)
    moved = before - layer.weight.detach()
    assert torch.allclose(moved, torch.tensor([[1.2, 1.6, 0.0]]), atol=1e-5)
    assert layer.weight.grad is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_apply_gradients_leaves_the_weights_when_a_gradient_is_not_finite(bad):
    layer = torch.nn.Linear(3, 1, bias=False)
    before = layer.weight.detach().clone()
    optimizer = make_optimizer(layer, OptimConfig())
    layer.weight.grad = torch.tensor([[1.0, bad, 0.0]])
    assert not math.isfinite(apply_gradients(optimizer, lr=1.0, max_grad_norm=1.0))
    assert torch.equal(layer.weight, before)
    assert layer.weight.grad is None
    assert not optimizer.state


def test_make_optimizer_decays_matrices_only():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LayerNorm(2))
    groups = make_optimizer(model, OptimConfig(weight_decay=0.3)).param_groups
    assert [(g["weight_decay"], [p.dim() for p in g["params"]]) for g in groups] == [
        (0.3, [2]),
        (0.0, [1, 1, 1]),
    ]
