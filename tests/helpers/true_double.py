"""transformers' models in float64 throughout, where their code casts to float32 whatever its inputs are."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class TrueDouble(TorchDispatchMode):
    """Within it float64 tensors and integers become float64 where float32 is asked for: norms, softmax, gates
    and recurrent states of a float64 model are exact, forward and backward, and what a checkpoint computes
    again. All else is its own code."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        casts = func is torch.ops.aten._to_copy.default and kwargs.get("dtype") == torch.float32
        if casts and (args[0].dtype == torch.float64 or not args[0].is_floating_point()):
            kwargs["dtype"] = torch.float64
        return func(*args, **kwargs)
