"""Recorders of decoding steps for machines without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Step = Callable[[], Tensor]


class Eager:
    """Takes every step as it is written."""

    def __init__(self) -> None:
        self.num_recorded = 0

    def warm_up(self, step: Step) -> Tensor:
        return step()

    def record(self, step: Step) -> Step:
        self.num_recorded += 1
        return step


class Tape(Eager):
    """Repeats the recorded step's operations on the recorded tensors and numbers, as a CUDA graph does."""

    def record(self, step: Step) -> Step:
        self.num_recorded += 1
        with Calls() as calls:
            out = step()

        def replay() -> Tensor:
            for func, args, kwargs, olds in calls.made:
                for new, old in zip(tensors_of(func(*args, **kwargs)), olds, strict=True):
                    if new.data_ptr() != old.data_ptr():  # neither a view nor in place
                        old.copy_(new)
            return out

        return replay


class Calls(TorchDispatchMode):
    """The operations that run while it is entered; none may hand a value to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[Any, Any, Any, tuple[Tensor, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "equal"), f"{name}: the host waits"
        out = func(*args, **(kwargs or {}))
        self.made.append((func, args, kwargs or {}, tensors_of(out)))
        return out


def tensors_of(out: Any) -> tuple[Tensor, ...]:
    return tuple(x for x in (out if isinstance(out, tuple) else (out,)) if isinstance(x, Tensor))
