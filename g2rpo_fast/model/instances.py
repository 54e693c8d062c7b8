"""Forwards of single modules replaced: norms, MLPs and attentions of the families whose formulas are known.

Instances only: no class is changed, nothing is saved with the model, `module.forward` deleted undoes it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial, update_wrapper
from types import CellType, FunctionType, MethodType
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3")
"""Their modules are RMSNorm, the gated SiLU and RoPE as they are written here; Gemma's norm, say, is not."""
ROPE = "apply_rotary_pos_emb"
"""The function by which transformers' attentions rotate queries and keys: a global of their module."""

Forward = Callable[..., Tensor]
Rotate = Callable[..., tuple[Tensor, Tensor]]
"""(transformers' own function, then its arguments: queries, keys, cos, sin) -> rotated queries and keys."""


def use_forwards(model: PreTrainedModel, *, norm: Forward, mlp: Forward) -> int:
    """Gives the model's norms and gated-SiLU MLPs these forwards. Returns how many modules took one."""
    silu = getattr(model.config.get_text_config(), "hidden_act", None) == "silu"
    forwards = {f"{family}RMSNorm": norm for family in FAMILIES}
    forwards |= {f"{family}MLP": mlp for family in FAMILIES if silu}
    taken = [module for module in model.modules() if type(module).__name__ in forwards]
    for module in taken:
        module.forward = MethodType(forwards[type(module).__name__], module)
    return len(taken)


def use_rope(model: PreTrainedModel, rotate: Rotate) -> int:
    """Lets the model's attentions rotate through `rotate`. Returns how many do.

    Each gets a copy of its class's forward in which the name `ROPE` means `rotate`. Decorators that call what
    they wrap from a variable of their own (transformers' `deprecate_kwarg`) are kept around it. A forward
    behind other decorators, or that does not look that name up, stays as it is.
    """
    names = {f"{family}Attention" for family in FAMILIES}
    attentions = [module for module in model.modules() if type(module).__name__ in names]
    kinds = {type(module) for module in attentions}
    copies = {kind: rebound(kind.forward, {ROPE: rotate}) for kind in kinds}
    taken = [(module, copy) for module in attentions if (copy := copies[type(module)]) is not None]
    for module, copy in taken:
        module.forward = MethodType(copy, module)
    return len(taken)


def rebound(forward: Any, replaced: Mapping[str, Callable[..., Any]]) -> FunctionType | None:
    """A copy of `forward` in which other functions stand for global names of its module.

    Args:
        replaced: for each name the function that takes its place; it is called with what the name meant, and
            then the arguments. Names that `forward` does not look up are left alone.

    Returns:
        None where it looks up none of them, or it cannot be told that the copy would.
    """
    if not inspect.isfunction(forward):
        return None
    names, cells = forward.__globals__, forward.__closure__
    wrapped = getattr(forward, "__wrapped__", None)
    used = set(replaced) & set(forward.__code__.co_names) & set(names)
    if wrapped is not None:
        held = [cell.cell_contents is wrapped for cell in cells or ()]
        inner = rebound(wrapped, replaced) if any(held) else None
        if inner is None:
            return None
        cells = tuple(CellType(inner) if mine else cell for cell, mine in zip(cells or (), held))
    elif used:
        names = names | {name: partial(replaced[name], names[name]) for name in used}
    else:
        return None
    copy = FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__, cells)
    copy.__kwdefaults__ = forward.__kwdefaults__
    return update_wrapper(copy, forward)  # pyright: ignore[reportReturnType]
