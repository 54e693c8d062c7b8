"""What `tree_attention(impl=None)` takes, as documented: by chip, dtype, width, window and softcap."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from g2rpo_kernels.tree_attention import tree_attention
from g2rpo_kernels.tree_attention.choice import Impl, Query, default_impl
from g2rpo_kernels.tree_attention.reference import tree_attention_reference

HALF, SINGLE, DOUBLE = torch.bfloat16, torch.float32, torch.float64
H200, TURING = (9, 0), (7, 5)
LONGEST = 40


@pytest.mark.parametrize(
    ("dtype", "width", "capability", "window", "softcap", "impl"),
    [
        (SINGLE, 64, None, None, None, "cascade"),
        (DOUBLE, 17, None, LONGEST, None, "cascade"),
        (SINGLE, 64, None, LONGEST - 1, None, "reference"),
        (SINGLE, 64, None, None, 30.0, "reference"),
        (HALF, 64, H200, None, None, "cascade"),
        (torch.float16, 256, H200, LONGEST, None, "cascade"),
        (HALF, 64, TURING, None, None, "cascade"),
        (HALF, 64, H200, LONGEST - 1, None, "triton"),
        (HALF, 64, H200, None, 30.0, "triton"),
        (SINGLE, 64, H200, None, None, "triton"),
        (SINGLE, 64, TURING, None, None, "reference"),
        (HALF, 64, TURING, None, 30.0, "reference"),
        (DOUBLE, 64, H200, None, None, "reference"),
        (HALF, 12, H200, None, None, "reference"),
        (HALF, 264, H200, None, None, "reference"),
    ],
)
def test_default_implementation(
    dtype: torch.dtype,
    width: int,
    capability: tuple[int, int] | None,
    window: int | None,
    softcap: float | None,
    impl: str,
) -> None:
    assert default_impl(Query(dtype, width, capability), window, softcap, LONGEST) == impl


def test_cpu_tensors_take_what_was_chosen() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(6, 2, 8, generator=generator) for _ in range(3))
    assert Query.of(q) == Query(torch.float32, 8, None)
    end, position = torch.tensor([6, 6, 4, 4, 6, 6]), torch.tensor([0, 1, 2, 3, 2, 3])
    cases: list[tuple[int | None, float | None, Impl]] = [
        (None, None, "cascade"),
        (4, None, "cascade"),
        (None, 2.0, "reference"),
    ]
    for window, softcap, impl in cases:
        attention = partial(tree_attention, position_S=position, scale=0.5, window=window, softcap=softcap)
        out = attention(q, k, v, end)
        assert torch.equal(out, attention(q, k, v, end, impl=impl))
        exact = (q.double(), k.double(), v.double(), end)
        true = tree_attention_reference(
            *exact, position_S=position, scale=0.5, window=window, softcap=softcap
        )
        assert true.abs().max() > 0.1
        torch.testing.assert_close(out.double(), true, rtol=1e-5, atol=1e-6)
