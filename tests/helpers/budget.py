"""The error that an implementation may make: from what a machine's own arithmetic makes of its definition.

    allowed = 2 * max over draws |eager - truth| + one rounding of max |truth|

`truth` is the definition in float64, `eager` the definition in PyTorch in the implementation's precision. One
run of eager is one draw of rounding errors, and may be lucky: the processor, and the library that suits it,
decide in which order its sums run. So there are several: this machine's, and some with sums in random orders
and with NumPy's products, exp, log and tanh, which are those of Triton's interpreter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch._decomp import get_decompositions
from torch.utils._python_dispatch import TorchDispatchMode


class Tolerance(TypedDict):
    """Of `torch.testing.assert_close`, for values that are equal but for float64's rounding."""

    rtol: float
    atol: float


aten = torch.ops.aten
FUSED = get_decompositions(
    [
        aten._log_softmax,
        aten._log_softmax_backward_data,
        aten._softmax,
        aten._softmax_backward_data,
        aten.logsumexp,
        aten.addmm,
    ]
)
ELEMENTWISE = {"exp": np.exp, "log": np.log, "tanh": np.tanh}


class RandomOrder(TorchDispatchMode):
    """Products and sums in float32 and less run in random orders; on the CPU, NumPy does what it has."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._generator = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        first = next((x for x in args if isinstance(x, Tensor)), None)
        if first is None or not first.is_floating_point() or first.dtype == torch.float64:
            return func(*args, **kwargs)
        if func in FUSED:
            with self:
                return FUSED[func](*args, **kwargs)
        name = func.overloadpacket.__name__
        if name in ("mm", "bmm"):
            left, right = args
            order = self._order(left.shape[-1], left)
            return into(product(left.index_select(-1, order), right.index_select(-2, order)), **kwargs)
        if name == "sum":
            values, *rest = args
            dims = rest[0] if rest and rest[0] else range(values.dim())
            for dim in dims if isinstance(dims, Sequence) else (dims,):
                values = values.index_select(dim, self._order(values.shape[dim], values))
            return func(values, *rest, **kwargs)
        if name in ELEMENTWISE and first.device.type == "cpu":
            with np.errstate(divide="ignore"):  # log 0
                found = torch.as_tensor(ELEMENTWISE[name](in_numpy(first))).to(first.dtype)
            return into(found, **kwargs)
        return func(*args, **kwargs)

    def _order(self, size: int, like: Tensor) -> Tensor:
        return torch.randperm(size, generator=self._generator).to(like.device)


def into(found: Tensor, out: Tensor | None = None) -> Tensor:
    """What an operator returns that was given `out`, or was not."""
    return found if out is None else out.copy_(found)


def product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right, rounded to their dtype; on the CPU by NumPy in float32."""
    if left.device.type != "cpu":
        return left @ right
    return torch.from_numpy(np.matmul(in_numpy(left), in_numpy(right))).to(left.dtype)


def in_numpy(values: Tensor) -> np.ndarray:
    return values.detach().float().numpy()


def draws(run: Callable[[], Sequence[Tensor]], num: int = 3) -> list[Sequence[Tensor]]:
    """What eager `run` returns with this machine's arithmetic, and with `num` others."""
    found = [run()]
    for seed in range(num):
        with RandomOrder(seed):
            found.append(run())
    return found


def error(value: Tensor, truth: Tensor) -> float:
    return float((value.detach().double() - truth).abs().max())


def budget(eagers: Iterable[Tensor], truth: Tensor, dtype: torch.dtype, size: float | None = None) -> float:
    """The error allowed to a value in `dtype`. `size`: what is rounded, unless the greatest of `truth`."""
    size = float(truth.abs().max()) if size is None else size
    assert size > 0
    return 2 * max(error(x, truth) for x in eagers) + torch.finfo(dtype).eps * size


def excess(got: Tensor, eagers: Iterable[Tensor], truth: Tensor, size: float | None = None) -> float:
    """The error of `got` over its budget."""
    assert got.isfinite().all()
    return error(got, truth) / budget(eagers, truth, got.dtype, size)


def assert_within_budget(
    got: Iterable[Tensor],
    eagers: Iterable[Sequence[Tensor]],
    truth: Iterable[Tensor],
    terms: float = 0.0,
    dtype: torch.dtype | None = None,
) -> None:
    """Of several values, each of them in every draw of `eagers`.

    `terms`: the total size of what a 0-dim value sums, where it has both signs.
    `dtype`: of the operands, where the values have a wider one.
    """
    for value, same, true in zip(got, zip(*eagers, strict=True), truth, strict=True):
        assert value.isfinite().all()
        if not true.any():
            assert not value.any()
            continue
        size = max(float(true.abs().max()), terms if true.dim() == 0 else 0.0)
        assert error(value, true) <= budget(same, true, dtype or value.dtype, size)


class WorstErrors:
    """Errors of an op and of same-precision eager, relative to the truth's largest value, over cases.

    The budget holds for the worst of each, over cases and draws: with a few rows eager may be exact by luck.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.worst: dict[str, tuple[float, float]] = {}

    def add(self, name: str, got: Tensor, eagers: Iterable[Tensor], truth: Tensor) -> None:
        truth = truth.detach()
        assert torch.isfinite(got).all()
        if not truth.any():  # all is clipped
            assert not got.any(), name
            return
        of_got, of_eager = self.worst.get(name, (0.0, 0.0))
        size = float(truth.abs().max())
        self.worst[name] = (
            max(of_got, error(got, truth) / size),
            max(of_eager, *(error(x, truth) / size for x in eagers)),
        )

    def add_all(
        self,
        names: Iterable[str],
        got: Sequence[Tensor],
        eagers: Iterable[Sequence[Tensor]],
        truth: Sequence[Tensor],
    ) -> None:
        for name, value, same, true in zip(names, got, zip(*eagers, strict=True), truth, strict=True):
            self.add(name, value, same, true)

    def check(self) -> None:
        for name, (got, eager) in self.worst.items():
            eps = torch.finfo(self.dtype if name.startswith("gradient") else torch.float32).eps
            assert got <= 2 * eager + eps, (name, got, eager)
            assert eager < 0.15, (name, eager)  # else the budget says little
        assert any(eager > 0 for name, (_, eager) in self.worst.items() if name.startswith("gradient"))
