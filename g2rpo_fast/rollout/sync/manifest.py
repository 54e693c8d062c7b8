"""What lies where in a slot of the arena: name, dtype, shape and offset of every tensor.

Each tensor starts at a multiple of 256 bytes and is contiguous; so does each slot.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import torch
from torch import Tensor

ALIGNMENT = 256
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2,
        torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
    )
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """One tensor of a slot."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    """Bytes from the start of the slot."""
    nbytes: int


@dataclass(frozen=True)
class Manifest:
    """The tensors of a slot, in the order in which they lie there."""

    entries: tuple[Entry, ...]
    slot_bytes: int

    @classmethod
    def of(cls, named_tensors: Iterable[tuple[str, Tensor]], dtype: torch.dtype | None) -> Manifest:
        """Room for these tensors, floating-point ones as `dtype` (None: as they are).

        Only names, shapes and dtypes are read, one tensor at a time: tensors on `meta` will do. ValueError
        for a name that comes twice, a dtype that has no place in an arena, or no tensor at all.
        """
        entries: list[Entry] = []
        offset = 0
        for name, tensor in named_tensors:
            kind = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
            if kind not in NAMES:
                raise ValueError(f"{name}: wanted one of {', '.join(DTYPES)}, got {kind}")
            nbytes = prod(tensor.shape) * kind.itemsize
            entries.append(Entry(name, kind, tuple(tensor.shape), offset, nbytes))
            offset += -(-nbytes // ALIGNMENT) * ALIGNMENT
        return cls(tuple(entries), offset)

    def __post_init__(self) -> None:
        end = 0
        if not self.entries or not any(entry.nbytes for entry in self.entries):
            raise ValueError("manifest: wanted tensors with elements, got none")
        names = set[str]()
        for entry in self.entries:
            if entry.name in names:
                raise ValueError(f"manifest: wanted each name once, got {entry.name} twice")
            names.add(entry.name)
            nbytes = prod(entry.shape) * entry.dtype.itemsize
            if entry.nbytes != nbytes:
                raise ValueError(f"{entry.name}: wanted {nbytes} bytes, got {entry.nbytes}")
            if entry.offset < end or entry.offset % ALIGNMENT:
                raise ValueError(
                    f"{entry.name}: wanted a multiple of {ALIGNMENT} at or behind {end}, got {entry.offset}"
                )
            end = entry.offset + entry.nbytes
        if self.slot_bytes < end or self.slot_bytes % ALIGNMENT:
            raise ValueError(
                f"slot_bytes: wanted a multiple of {ALIGNMENT} of at least {end}, got {self.slot_bytes}"
            )

    @cached_property
    def index(self) -> dict[str, int]:
        """Name -> place in `entries`."""
        return {entry.name: place for place, entry in enumerate(self.entries)}

    @property
    def nbytes(self) -> int:
        """Of the tensors, the gaps between them left out."""
        return sum(entry.nbytes for entry in self.entries)

    def views(self, slot: Tensor) -> list[Tensor]:
        """The tensors of a slot given as its bytes."""
        return [
            slot[entry.offset : entry.offset + entry.nbytes].view(entry.dtype).view(entry.shape)
            for entry in self.entries
        ]

    def to_json(self) -> dict[str, Any]:
        rows = [[e.name, NAMES[e.dtype], list(e.shape), e.offset, e.nbytes] for e in self.entries]
        return {"entries": rows, "slot_bytes": self.slot_bytes}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Manifest:
        """The inverse of `to_json`; ValueError where entries overlap or do not fit."""
        entries = []
        for name, dtype, shape, offset, nbytes in data["entries"]:
            if dtype not in DTYPES:
                raise ValueError(f"{name}: wanted one of {', '.join(DTYPES)}, got {dtype}")
            entries.append(Entry(name, DTYPES[dtype], tuple(shape), offset, nbytes))
        return cls(tuple(entries), data["slot_bytes"])

    @property
    def fingerprint(self) -> int:
        """64 bits that two manifests share only if they are equal."""
        text = json.dumps(self.to_json(), separators=(",", ":"))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
