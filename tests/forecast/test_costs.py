"""What a forecast reckons with: prefix trees, costs of steps and rows, an optimiser that moves nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from g2rpo_fast.forecast.rollout import Costs, _solved, num_positions
from g2rpo_fast.forecast.update import Still
from g2rpo_fast.optim import apply_gradients
from g2rpo_fast.types import Request


def test_positions_of_prefixes():
    """1 2 3, 1 2 4 5 and 1 2 share two; 7 stands alone; what comes twice counts once."""
    assert num_positions([(1, 2, 3), (7,), (1, 2, 4, 5), (1, 2), (1, 2, 3)]) == 6
    assert num_positions([]) == 0


@pytest.mark.parametrize(("step_s", "row_s"), [(0.05, 0.002), (0.0, 0.01), (0.1, 0.0)])
def test_costs_are_found_from_two_calls(step_s: float, row_s: float):
    calls = [(steps, rows, steps * step_s + rows * row_s) for steps, rows in ((8, 64), (40, 4000))]
    assert _solved(calls[0], calls[1]) == pytest.approx((step_s, row_s))


def test_costs_are_never_negative_and_meet_the_larger_call():
    """Noise: the small call was the slower one."""
    for small_s in (0.001, 100.0):
        step_s, row_s = _solved((8, 64, small_s), (40, 4000, 3.0))
        assert step_s >= 0
        assert row_s >= 0
        assert 40 * step_s + 4000 * row_s == pytest.approx(3.0)
    assert _solved((0, 0, 0.0), (0, 0, 0.0)) == (0.0, 0.0)
    assert _solved((8, 64, 1.0), (8, 64, 1.0)) == pytest.approx((0.125, 0.0))


def test_seconds_of_waves():
    """Six rows in waves of four: 3 prefix positions, 9 + 2 steps, 20 row steps."""
    requests = [Request(prompt_ids=(1, 2, 3), max_tokens=9, seed=0)] * 6
    lengths = np.array([9, 3, 2, 2, 2, 2])
    assert Costs(1000.0, 10.0, 0.1).seconds(requests, lengths, max_rows=4) == pytest.approx(3000 + 110 + 2)


def test_still_moves_nothing():
    model = torch.nn.Linear(3, 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model(torch.ones(1, 3)).sum().backward()
    optimizer = Still(model)
    assert apply_gradients(optimizer, lr=1.0, max_grad_norm=1.0) > 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [p.grad for p in model.parameters()] == [None, None]
    assert not optimizer.state
