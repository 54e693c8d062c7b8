"""Edges and objective as arguments of an operator, which takes tensors, numbers and strings only."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from torch import Tensor

from g2rpo_kernels.linear_logprob.linear import LINEAR_SCHEMA, Linear
from g2rpo_kernels.policy_loss.records import Edges, Objective
from g2rpo_kernels.policy_loss.surrogates import Surrogate, surrogate_of

PROBLEM_SCHEMA = (
    "Tensor?[] edges, SymInt num_rows, SymInt[]? row_cuts, float[] numbers, str names, "
    f"float[] settings, SymInt? chunk_bytes, bool[] needs, {LINEAR_SCHEMA}"
)
"""Of what `packed` gives to an operator."""

_TENSORS = tuple(name for name in Edges._fields if name not in ("num_rows", "row_cuts"))
_NAMES = ("ratio", "kl")
_FLAGS = tuple(field.name for field in fields(Objective) if isinstance(field.default, bool))
_NUMBERS = tuple(
    field.name for field in fields(Objective) if field.name not in ("surrogate", *_NAMES, *_FLAGS)
)


def packed(
    linear: Linear, edges: Edges, objective: Objective, chunk_bytes: int | None, needs: Sequence[bool]
) -> tuple[Any, ...]:
    """Arguments of an operator, see PROBLEM_SCHEMA. NaN stands for None among the numbers."""
    tensors: list[Tensor | None] = [getattr(edges, name) for name in _TENSORS]
    cuts = None if edges.row_cuts is None else list(edges.row_cuts)
    numbers = [getattr(objective, name) for name in _NUMBERS]
    numbers = [math.nan if value is None else float(value) for value in numbers]
    numbers += [float(getattr(objective, name)) for name in _FLAGS]
    kind, settings = packed_surrogate(surrogate_of(objective.surrogate))
    names = " ".join([kind, *[getattr(objective, name) for name in _NAMES]])
    return tensors, edges.num_rows, cuts, numbers, names, settings, chunk_bytes, list(needs), *linear.packed()


def unpacked(
    tensors: list[Tensor | None],
    num_rows: int,
    cuts: list[int] | None,
    numbers: list[float],
    names: str,
    surrogate: list[float],
    chunk_bytes: int | None,
    needs: list[bool],
    *linear: Any,
) -> tuple[Linear, Edges, Objective, int | None, list[bool]]:
    """`packed` undone."""
    edges: dict[str, Any] = dict(zip(_TENSORS, tensors, strict=True))
    edges |= {"num_rows": num_rows, "row_cuts": None if cuts is None else tuple(cuts)}
    kind, *chosen = names.split()
    settings: dict[str, Any] = dict(zip(_NAMES, chosen, strict=True))
    settings["surrogate"] = unpacked_surrogate(kind, surrogate)
    settings |= {
        name: None if math.isnan(value) else value for name, value in zip(_NUMBERS, numbers, strict=False)
    }
    settings |= {name: bool(value) for name, value in zip(_FLAGS, numbers[len(_NUMBERS) :], strict=True)}
    return Linear.unpacked(*linear), Edges(**edges), Objective(**settings), chunk_bytes, needs


def packed_surrogate(surrogate: Surrogate) -> tuple[str, list[float]]:
    """(module:class, settings with NaN for None)."""
    values = [getattr(surrogate, field.name) for field in fields(surrogate)]
    kind = f"{type(surrogate).__module__}:{type(surrogate).__qualname__}"
    return kind, [math.nan if value is None else float(value) for value in values]


def unpacked_surrogate(kind: str, settings: list[float]) -> Surrogate:
    """`packed_surrogate` undone."""
    module, _, name = kind.partition(":")
    found = getattr(sys.modules[module], name, None)
    if found is None:
        raise ValueError(f"surrogate: wanted a class at the top of its module, got {name} of {module}")
    values = [None if math.isnan(value) else value for value in settings]
    return found(**dict(zip([field.name for field in fields(found)], values, strict=True)))
