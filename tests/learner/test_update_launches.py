"""How often an update rounds and copies, whatever its number of micro-batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from g2rpo_fast.model import ModelConfig
from objectives import Loss
from op_counts import Ops
from updates import PLAIN, advantages, batches, learner, rollouts

HALF, FULL = torch.bfloat16, torch.float32


def counted(ours: Any, objective: Loss) -> tuple[Ops, dict[str, float]]:
    with Ops() as ops:
        stats = ours.update(batches(rollouts(), advantages(), objective), lr=1.0)
    return ops, stats


@pytest.mark.parametrize("budget", [8192, 40])
def test_an_update_in_bfloat16_rounds_each_weight_once(budget: int) -> None:
    """And its gradient is rounded once, in the first micro-batch; both of the policy and of the reference."""
    objective = Loss(kl_coef=0.1)
    ours = learner(objective, budget=budget, compute=ModelConfig(precision="bfloat16"))
    ops, stats = counted(ours, objective)
    assert stats["update/micro_batches"] == (1 if budget == 8192 else 3)
    maps = [m for m in ours.model.model.modules() if isinstance(m, nn.Linear)]
    shapes = {tuple(m.weight.shape) for m in maps}
    assert sum(ops.num_casts(shape, FULL, HALF) for shape in shapes) == 2 * len(maps) > 20
    assert sum(ops.num_casts(shape, HALF, FULL) for shape in shapes) == len(maps)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_batch_of_one_is_taken_off_without_a_copy(precision: Any) -> None:
    """Indexing it away would fill and copy a tensor in backward, each of q, k, v and the hidden states."""
    ops, _ = counted(learner(compute=ModelConfig(precision=precision)), PLAIN)
    assert "unsqueeze" in ops.names
    assert "select_backward" not in ops.names
