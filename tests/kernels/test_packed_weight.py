"""Products with a packed weight: held to float64, of a few shapes only, not used where they do not fit."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from g2rpo_kernels import packed_weight
from g2rpo_kernels.packed_weight import LEAST, PackedWeight, packs, padded_rows, worth_packing

from budget import assert_within_budget, draws

COLUMNS = 521
"""A prime, as is the number of columns in."""


@pytest.fixture
def fresh() -> Iterator[None]:
    """What the check found is forgotten, before and after."""
    packs.cache_clear()
    yield
    packs.cache_clear()


def numbers(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_rows", [1, 7, 8, 9, 63, 65, 129])
@pytest.mark.parametrize("biased", [False, True])
def test_a_product_is_within_the_budget_of_its_definition(
    dtype: torch.dtype, num_rows: int, biased: bool
) -> None:
    if not packs(dtype):
        pytest.skip(f"this PyTorch packs no {dtype} on this processor")
    x_NI, weight_OI = numbers(num_rows, 509, dtype=dtype), numbers(COLUMNS, 509, dtype=dtype)
    bias_O = numbers(COLUMNS, dtype=dtype) if biased else None
    product = PackedWeight(weight_OI, bias_O)
    added = torch.zeros(COLUMNS, dtype=dtype) if bias_O is None else bias_O
    truth = x_NI.double() @ weight_OI.double().T + added.double()
    eager = draws(lambda: [x_NI @ weight_OI.T + added])
    got = product(x_NI)
    assert got.dtype == dtype
    assert_within_budget([got], eager, [truth])
    strided_NI = numbers(509, num_rows, dtype=dtype).T
    assert torch.equal(product(strided_NI), product(strided_NI.contiguous()))


def test_a_packed_weight_is_a_copy() -> None:
    if not packs(torch.float32):
        pytest.skip("this PyTorch packs nothing on this processor")
    weight_OI = torch.eye(8)
    product = PackedWeight(weight_OI)
    weight_OI.zero_()
    x_NI = numbers(3, 8, dtype=torch.float32)
    assert torch.equal(product(x_NI), x_NI)


def test_rows_are_padded_to_a_few_sizes() -> None:
    sizes = [padded_rows(n) for n in range(1, 1025)]
    assert len(set(sizes)) == 24
    for n, size in enumerate(sizes, start=1):
        assert n <= size <= max(n + 7, 1.25 * n)
    assert padded_rows(1024) == 1024


def test_what_is_small_or_of_another_dtype_or_elsewhere_is_not_packed() -> None:
    wide = torch.empty(LEAST // 512, 512)
    assert worth_packing(wide) == packs(torch.float32)
    assert not worth_packing(wide[:-1])
    assert not worth_packing(wide.double())
    assert not worth_packing(wide.half())
    assert not worth_packing(wide.to("meta"))


def test_a_product_that_is_missing_or_wrong_is_not_used(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = torch.empty(LEAST // 512, 512)

    class Wrong(PackedWeight):
        def __call__(self, x_NI: torch.Tensor) -> torch.Tensor:
            return super().__call__(x_NI) * (1 + 1e-5)

    monkeypatch.setattr(packed_weight, "PackedWeight", Wrong)
    assert not worth_packing(wide)
    packs.cache_clear()

    def refuse(*_: object) -> None:
        raise RuntimeError("could not create a primitive descriptor")

    monkeypatch.setattr(packed_weight, "PackedWeight", refuse)
    assert not worth_packing(wide)
    packs.cache_clear()
    monkeypatch.undo()
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not worth_packing(wide)
