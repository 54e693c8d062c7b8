"""Records as arguments of an operator of `torch.library`, which takes tensors, numbers, strings and lists.

LINEAR = packing(Linear, shard=SHARD)
op(*LINEAR.pack(linear))          # a field is one argument, of the type that its annotation says
LINEAR.unpack(*arguments)         # a field that is a record itself is several: say how it is packed
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, Literal, TypeVar, get_origin, get_type_hints

import torch
from torch import Tensor

Record = TypeVar("Record")

TYPES: dict[Any, str] = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    int: "SymInt",
    int | None: "SymInt?",
    tuple[int, ...] | None: "SymInt[]?",
    float: "float",
    float | None: "float?",
    bool: "bool",
    tuple[bool, ...]: "bool[]",
    str: "str",
    torch.dtype: "ScalarType",
}
"""Annotation -> type of an argument in an operator's schema."""


@dataclass(frozen=True)
class Packing(Generic[Record]):
    """How a record becomes arguments, and these the record."""

    schema: tuple[str, ...]
    """Type and name of each argument."""
    pack: Callable[[Record], tuple[Any, ...]]
    unpack: Callable[..., Record]

    def __str__(self) -> str:
        """As a part of an operator's schema."""
        return ", ".join(self.schema)


def packing(record: type[Record], **parts: Packing[Any]) -> Packing[Record]:
    """Of a NamedTuple or a dataclass; `parts`: of its fields that are not one argument."""
    hints = get_type_hints(record)
    whole = {name: parts[name] if name in parts else _argument(name, hints[name]) for name in hints}

    def pack(given: Record) -> tuple[Any, ...]:
        return tuple(value for name, part in whole.items() for value in part.pack(getattr(given, name)))

    def unpack(*arguments: Any) -> Record:
        left = iter(arguments)
        return record(**{name: part.unpack(*islice(left, len(part.schema))) for name, part in whole.items()})

    return Packing(tuple(line for part in whole.values() for line in part.schema), pack, unpack)


def _argument(name: str, hint: Any) -> Packing[Any]:
    kind = "str" if get_origin(hint) is Literal else TYPES[hint]
    return Packing((f"{kind} {name}",), lambda value: (value,), _tuple_of_list if "[]" in kind else _same)


def _same(value: Any) -> Any:
    return value


def _tuple_of_list(value: Any) -> Any:
    return None if value is None else tuple(value)
