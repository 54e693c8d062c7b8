"""What `tree_attention(impl=None)` takes, as documented: by chip, dtype, width, window and softcap."""

from __future__ import annotations

import pytest
import torch
from g2rpo_kernels.tree_attention import tree_attention
from g2rpo_kernels.tree_attention.choice import Query, default_impl
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
    for options, impl in (({}, "cascade"), ({"window": 4}, "cascade"), ({"softcap": 2.0}, "reference")):
        given = (q, k, v, end)
        out = tree_attention(*given, position_S=position, scale=0.5, **options)
        assert torch.equal(out, tree_attention(*given, position_S=position, scale=0.5, impl=impl, **options))
        want = {"window": None, "softcap": None, **options}
        true = tree_attention_reference(
            *(x.double() for x in (q, k, v)), end, position_S=position, scale=0.5, **want
        )
        assert true.abs().max() > 0.1
        torch.testing.assert_close(out.double(), true, rtol=1e-5, atol=1e-6)
