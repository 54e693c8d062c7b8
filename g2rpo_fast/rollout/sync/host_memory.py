"""Memory of the arena on the CPU: an anonymous file."""

from __future__ import annotations

from typing import Any

import torch

from g2rpo_fast import _C

SLOTS = 2


class SharedHostMemory:
    """An anonymous file (memfd): CPU memory, written and read by the CPU."""

    def __init__(self, shared: _C.SharedMemory) -> None:
        self._shared = shared
        self.bytes_B = torch.frombuffer(shared, dtype=torch.uint8)

    @classmethod
    def create(cls, nbytes: int, device: torch.device) -> SharedHostMemory:
        if device.type != "cpu":
            raise ValueError(f"kind='memfd': wanted tensors on the CPU, got device {device} (kind='host'?)")
        return cls(_C.SharedMemory.create(nbytes, torch.get_num_threads()))

    @classmethod
    def open(cls, owner: int, address: dict[str, Any], device: torch.device) -> SharedHostMemory:
        """`device` is where the reader's own tensors are: any."""
        return cls(open_shared(owner, address))

    def address(self) -> dict[str, Any]:
        return address_of(self._shared)

    def record(self, slot: int) -> None:
        """Nothing: CPU copies are complete when they return."""

    def await_record(self, slot: int) -> None:
        """Nothing: the message that names the slot comes after the copies."""

    def close(self) -> None:
        self._shared.close()


def address_of(shared: _C.SharedMemory) -> dict[str, Any]:
    return {"fd": shared.fd, "inode": shared.inode, "nbytes": shared.nbytes}


def open_shared(owner: int, address: dict[str, Any]) -> _C.SharedMemory:
    return _C.SharedMemory.open(
        owner, address["fd"], address["inode"], address["nbytes"], torch.get_num_threads()
    )
