"""What every op asks of its arguments before it computes: tensors of a kind and on a device that it can use.

Numbers, shapes, dtypes and devices are always checked. Values are looked at only where that costs nothing
(`readable`): on a GPU the host would wait for them, and `torch.compile` would break its graph. There what is
not finite shows as a loss of NaN.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping

import torch
from torch import Tensor
from torch._C._functorch import is_batchedtensor
from torch.nn import Parameter


def check_tensors(given: Mapping[str, Tensor | None], *, one_device: bool = True) -> None:
    """Each is a plain tensor that holds values, on the device of the first unless not `one_device`.

    None is passed over. Raises ValueError that names the argument.
    """
    wanted, first = None, ""
    for name, value in given.items():
        if value is None:
            continue
        if type(value) is not Tensor and type(value) is not Parameter:
            _check_kind(name, value)
        device = value.device
        if device.type == "meta":
            raise ValueError(f"{name}: wanted a tensor with values, got one on the device meta")
        if wanted is None:
            wanted, first = device, name
        elif one_device and device != wanted:
            raise ValueError(f"{name}: wanted a tensor on {wanted}, as {first} is, got one on {device}")


def check_floating(given: Mapping[str, Tensor | None]) -> None:
    """Raise ValueError for a tensor of another dtype; None is passed over."""
    for name, value in given.items():
        if value is not None and not value.dtype.is_floating_point:
            raise ValueError(f"{name}: wanted a floating dtype, got {value.dtype}")


def is_sharded(value: object) -> bool:
    """Whether it is a DTensor. Does not import their module: where nobody did, there is none."""
    if type(value) is Tensor or type(value) is Parameter:
        return False
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def readable(value: Tensor) -> bool:
    """Whether its values can be looked at for nothing: on the CPU, and neither traced, mapped nor fake."""
    plain = type(value) is Tensor or type(value) is Parameter
    if not plain or value.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return not is_batchedtensor(value)


def shows_nan(value: Tensor) -> bool:
    """Whether something can be seen to be no finite number. One sum, and none of a loss."""
    return readable(value) and not math.isfinite((value.sum() if value.dim() else value).item())


def _check_kind(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise ValueError(f"{name}: wanted a tensor, got {type(value).__name__}")
    if is_sharded(value):
        placements = getattr(value, "placements", None)
        raise ValueError(
            f"{name}: wanted a plain tensor, got a DTensor of {placements}"
            f" (pass {name}.to_local(), or {name}.full_tensor())"
        )
