"""The trainer's half of the weight arena: two slots of memory that another process can open.

Push k fills slot k mod 2, so that the engine may still read one slot while the trainer packs the other. A
slot may be filled again when the engine has acknowledged its update, which it does after its copies are done.
A control page (csrc/ipc_arena.h) says which version, complete or not, each slot holds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from g2rpo_fast import _C
from g2rpo_fast.rollout.sync.checksum import checksum as checksum_of
from g2rpo_fast.rollout.sync.host_memory import SLOTS, address_of
from g2rpo_fast.rollout.sync.manifest import Manifest
from g2rpo_fast.rollout.sync.memory import KINDS, Kind, Memory
from g2rpo_fast.rollout.sync.pack import copy_in

CONTROL_BYTES = 4096


@dataclass(frozen=True, kw_only=True)
class PackReport:
    """One push."""

    slot: int
    version: int
    nbytes: int
    """Of the tensors in the slot."""
    seconds: float
    """Wall clock. On a GPU only the enqueueing, unless a checksum was asked for."""


class Arena:
    """Owns the memory. Closing it, or the end of the process however it comes, frees it."""

    def __init__(self, manifest: Manifest, kind: Kind, device: torch.device, memory: Memory) -> None:
        shared = _C.SharedMemory.create(CONTROL_BYTES, 1)
        self.manifest = manifest
        self.kind: Kind = kind
        self.device = device
        self._control = _C.ControlPage.create(shared, manifest.fingerprint)
        self._memory: Memory | None = memory
        self._views = slot_views(manifest, memory.bytes_B)
        self._pushes = 0

    @classmethod
    def create(cls, manifest: Manifest, *, kind: Kind, device: torch.device) -> Arena:
        """Memory for two slots, every page present.

        `kind`: memfd, for parameters on the CPU; cuda, memory of the GPU `device`, shared by CUDA IPC; host,
        pinned memory of the CPU for parameters on the GPU `device`, where IPC is refused. ValueError for a
        kind that does not fit the device; RuntimeError when the memory cannot be had.
        """
        if kind not in KINDS:
            raise ValueError(f"kind: wanted one of {', '.join(KINDS)}, got {kind!r}")
        device = indexed(device)
        return cls(manifest, kind, device, KINDS[kind].create(SLOTS * manifest.slot_bytes, device))

    def address(self) -> dict[str, Any]:
        """All that `ArenaReader.open` needs in another process of this machine, as plain JSON."""
        return {
            "kind": self.kind,
            "owner": os.getpid(),
            "pid_namespace": pid_namespace(),
            "control": address_of(self._control.memory),
            "memory": self._open_memory().address(),
            "manifest": self.manifest.to_json(),
        }

    def views(self, slot: int) -> list[Tensor]:
        """The slot's tensors, in the manifest's order. They keep the memory for as long as they live."""
        self._open_memory()
        return self._views[checked_slot(slot)]

    def pack(
        self, named_tensors: Iterable[tuple[str, Tensor]], version: int, *, checksum: bool = False
    ) -> PackReport:
        """Copies all tensors to the next slot, cast to the arena's dtypes, and publishes it as `version`.

        `named_tensors`: full tensors in any order; they may be made one by one as the iterator is asked for
        them (see `copy_in`). On a GPU the copies and then the slot's event go to the current stream, and
        nothing waits; with a checksum (of the slot's bytes, for the reader to verify) it does. ValueError
        names a tensor that does not match the manifest; the slot then counts as incomplete.
        """
        memory = self._open_memory()
        start = time.perf_counter()
        slot = self._pushes % SLOTS
        self._control.begin(slot, version)
        copy_in(named_tensors, self.manifest, self._views[slot], self.device)
        memory.record(slot)
        total = checksum_of(slot_bytes(self.manifest, memory.bytes_B, slot)) if checksum else None
        self._control.publish(slot, self.manifest.nbytes, total)
        self._pushes += 1
        return PackReport(
            slot=slot, version=version, nbytes=self.manifest.nbytes, seconds=time.perf_counter() - start
        )

    def close(self) -> None:
        """Frees the memory, once no tensor is left on it; readers that are attached keep theirs."""
        if self._memory is None:
            return
        self._control.close()
        self._control.memory.close()
        self._memory.close()
        self._memory, self._views = None, []

    def _open_memory(self) -> Memory:
        if self._memory is None:
            raise RuntimeError("arena: it is closed")
        return self._memory


def slot_bytes(manifest: Manifest, bytes_B: Tensor, slot: int) -> Tensor:
    return bytes_B[slot * manifest.slot_bytes : (slot + 1) * manifest.slot_bytes]


def slot_views(manifest: Manifest, bytes_B: Tensor) -> list[list[Tensor]]:
    return [manifest.views(slot_bytes(manifest, bytes_B, slot)) for slot in range(SLOTS)]


def checked_slot(slot: int) -> int:
    if slot not in range(SLOTS):
        raise ValueError(f"slot: wanted 0 or 1, got {slot}")
    return slot


def indexed(device: torch.device) -> torch.device:
    """`cuda` is the current CUDA device."""
    if device.type == "cuda" and device.index is None and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return device


def pid_namespace() -> int:
    """Process ids mean the same in two processes where these numbers are equal."""
    return os.stat("/proc/self/ns/pid").st_ino
