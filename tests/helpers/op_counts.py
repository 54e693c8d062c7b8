"""Which operations run, and on what."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Shape = tuple[int, ...]


class Ops(TorchDispatchMode):
    """Takes down the operations that run while it is entered, in backward passes too."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.casts: list[tuple[Shape, torch.dtype, torch.dtype]] = []
        """(shape, from, to) of each tensor that was copied to another dtype."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.names.append(name)
        if name in ("_to_copy", "copy_"):
            source: Tensor = args[1] if name == "copy_" else args[0]
            if source.dtype != out.dtype:
                self.casts.append((tuple(source.shape), source.dtype, out.dtype))
        return out

    def num_casts(self, shape: Shape, before: torch.dtype, after: torch.dtype) -> int:
        return self.casts.count((shape, before, after))
