"""Memory that trainer and engine both see: bytes, how another process finds them, when a slot may be read.

Descriptors and handles are released by `close`; the memory itself goes with the last tensor on it, in each
process, or with the process. Nothing has a name, so a crash leaves nothing behind.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from g2rpo_fast.rollout.sync.cuda_memory import CudaIpcMemory, PinnedHostMemory
from g2rpo_fast.rollout.sync.host_memory import SharedHostMemory

Kind = Literal["memfd", "cuda", "host"]


class Memory(Protocol):
    """One kind of memory, as its owner or an importer sees it."""

    bytes_B: Tensor
    """uint8, both slots."""

    def address(self) -> dict[str, Any]:
        """What an importer's `open` needs, as plain JSON."""
        ...

    def record(self, slot: int) -> None:
        """Owner: what was enqueued on the current stream until now completes the slot."""
        ...

    def await_record(self, slot: int) -> None:
        """Importer: what is enqueued on the current stream from now on sees the slot complete."""
        ...

    def close(self) -> None: ...


class MemoryKind(Protocol):
    """How memory of a kind comes about, in the owner and in an importer."""

    def create(self, nbytes: int, device: torch.device) -> Memory: ...

    def open(self, owner: int, address: dict[str, Any], device: torch.device) -> Memory: ...


KINDS: dict[Kind, MemoryKind] = {
    "memfd": SharedHostMemory,
    "cuda": CudaIpcMemory,
    "host": PinnedHostMemory,
}
