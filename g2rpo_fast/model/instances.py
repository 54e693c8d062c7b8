"""Forwards of single modules replaced: norms, MLPs and attentions of the families whose formulas are known.

Instances only: no class is changed, nothing is saved with the model, `module.forward` deleted undoes it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial, update_wrapper
from types import FunctionType, MethodType
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

    Each gets a copy of its class's forward in which the name `ROPE` means `rotate`. A forward that is
    decorated, or that does not look that name up, stays as it is.
    """
    names = {f"{family}Attention" for family in FAMILIES}
    taken = [m for m in model.modules() if type(m).__name__ in names and _looks_up(type(m).forward, ROPE)]
    copies = {type(module): _rebound(type(module).forward, rotate) for module in taken}
    for module in taken:
        module.forward = MethodType(copies[type(module)], module)
    return len(taken)


def _looks_up(forward: Any, name: str) -> bool:
    plain = inspect.isfunction(forward) and inspect.unwrap(forward) is forward
    return plain and name in forward.__code__.co_names and name in forward.__globals__


def _rebound(forward: Any, rotate: Rotate) -> FunctionType:
    names = forward.__globals__ | {ROPE: partial(rotate, forward.__globals__[ROPE])}
    copy = FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__)
    copy.__kwdefaults__ = forward.__kwdefaults__
    return update_wrapper(copy, forward)  # pyright: ignore[reportReturnType]
