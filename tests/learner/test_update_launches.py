"""How often an update rounds and copies, whatever its number of micro-batches."""

from __future__ import annotations

from typing import Any

import pytest

from g2rpo_fast.model import ModelConfig
from objectives import Loss
from op_counts import Ops
from updates import PLAIN, advantages, batches, learner, rollouts


def counted(ours: Any, objective: Loss) -> tuple[Ops, dict[str, float]]:
    with Ops() as ops:
        stats = ours.update(batches(rollouts(), advantages(), objective), lr=1.0)
    return ops, stats


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_batch_of_one_is_taken_off_without_a_copy(precision: Any) -> None:
    """Indexing it away would fill and copy a tensor in backward, each of q, k, v and the hidden states."""
    ops, _ = counted(learner(compute=ModelConfig(precision=precision)), PLAIN)
    assert "unsqueeze" in ops.names
    assert "select_backward" not in ops.names
