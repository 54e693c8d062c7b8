"""The linear ops with Triton's row kernels inside torch.compile: one graph, reused for other lengths."""

from __future__ import annotations

import pytest
import torch
from g2rpo_kernels import Objective, edge_coefficients, group_advantage
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from compiled_loss import SEQUENCE, TOKEN, check_one_graph


@pytest.mark.parametrize("objective", [None, TOKEN[0], SEQUENCE[0]])
def test_backbone_and_loss_compile_to_one_graph_for_all_lengths(objective: Objective | None) -> None:
    check_one_graph(objective, torch.float32, lengths=(7, 10, 5), impl="triton")


def test_float16_compiles() -> None:
    check_one_graph(TOKEN[1], torch.float16, lengths=(7, 10), impl="triton")


def test_advantages_compile_to_one_graph_for_all_lengths() -> None:
    def coefficients(reward: Tensor, group: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        advantage = group_advantage(reward * 2, group, scale="batch", impl="triton")
        member_ptr = torch.arange(0, len(weight) + 1, 2)
        return advantage, *edge_coefficients(advantage, weight, member_ptr, impl="triton")

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(coefficients, backend=counter, fullgraph=True)
    for num_rollouts in (4, 6, 10):
        given = (
            torch.arange(num_rollouts)[:, None] % 3.0,
            torch.arange(num_rollouts) % 2,
            torch.ones(num_rollouts),
        )
        for value, true in zip(compiled(*given), coefficients(*given), strict=True):
            assert true.abs().max() > 0.1
            assert torch.equal(value, true)
    assert counter.frame_count == 2
