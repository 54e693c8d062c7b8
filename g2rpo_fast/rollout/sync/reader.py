"""The engine's half of the weight arena: opens the trainer's memory once, checks slots before reading."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from g2rpo_fast import _C
from g2rpo_fast.rollout.sync.arena import checked_slot, indexed, pid_namespace, slot_bytes, slot_views
from g2rpo_fast.rollout.sync.checksum import checksum as checksum_of
from g2rpo_fast.rollout.sync.host_memory import open_shared
from g2rpo_fast.rollout.sync.manifest import Manifest
from g2rpo_fast.rollout.sync.memory import KINDS, Memory


class ArenaReader:
    """An importer of an arena. Its memory stays valid after the owner closed it or died (CPU kinds)."""

    def __init__(
        self, manifest: Manifest, device: torch.device, control: _C.ControlPage, memory: Memory
    ) -> None:
        self.manifest = manifest
        self.device = device
        self._control = control
        self._memory: Memory | None = memory
        self._views = slot_views(manifest, memory.bytes_B)

    @classmethod
    def open(cls, address: dict[str, Any], *, device: torch.device) -> ArenaReader:
        """Maps the memory that `Arena.address` describes. `device`: where the engine's parameters are.

        RuntimeError where the owner has gone, may not be looked into, is in another PID namespace, or shares
        memory of a GPU that this process does not see (devices are matched by UUID).
        """
        if address["pid_namespace"] != pid_namespace():
            raise RuntimeError(
                f"arena: wanted the PID namespace of its owner ({address['pid_namespace']}), got "
                f"{pid_namespace()}: trainer and engine must run in one container, or share its PID namespace"
            )
        device = indexed(device)
        manifest = Manifest.from_json(address["manifest"])
        control = _C.ControlPage.open(open_shared(address["owner"], address["control"]), manifest.fingerprint)
        memory = KINDS[address["kind"]].open(address["owner"], address["memory"], device)
        return cls(manifest, device, control, memory)

    def views(self, slot: int) -> list[Tensor]:
        """The slot's tensors, in the manifest's order: to be read only. They keep the memory mapped."""
        self._open_memory()
        return self._views[checked_slot(slot)]

    def named(self, slot: int) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) as a checkpoint would give them to a model's loader."""
        names = (entry.name for entry in self.manifest.entries)
        return zip(names, self.views(slot), strict=True)

    @property
    def bytes_B(self) -> Tensor:
        """uint8 [2 * slot_bytes], both slots."""
        return self._open_memory().bytes_B

    @property
    def owner_alive(self) -> bool:
        return self._control.owner_alive

    def wait(self, slot: int, version: int, *, checksum: bool = False) -> None:
        """Checks that the slot holds `version`, complete; on a GPU the current stream waits for its copies.

        With `checksum` the slot's bytes are compared with what the trainer packed, which waits for the
        device. RuntimeError says what was wanted and got.
        """
        memory = self._open_memory()
        sequence, got, nbytes, wanted_sum = self._control.read(checked_slot(slot))
        state = "never filled" if sequence == 0 else "incomplete" if sequence % 2 else "complete"
        if (state, got, nbytes) != ("complete", version, self.manifest.nbytes):
            owner = "" if self.owner_alive else "; its owner has ended"
            found = "nothing" if sequence == 0 else f"version {got}"
            raise RuntimeError(
                f"arena slot {slot}: wanted version {version}, complete, got {found}, {state}{owner}"
            )
        memory.await_record(slot)
        if checksum:
            self._verify(slot, version, wanted_sum)

    def _verify(self, slot: int, version: int, wanted: int | None) -> None:
        if wanted is None:
            raise RuntimeError(
                f"arena slot {slot}: wanted a checksum of version {version}, got none: it was packed without"
            )
        got = checksum_of(slot_bytes(self.manifest, self.bytes_B, slot))
        if got != wanted:
            raise RuntimeError(
                f"arena slot {slot}, version {version}: wanted checksum {wanted:016x}, got {got:016x}"
            )

    def close(self) -> None:
        """Unmaps the memory, once no tensor is left on it. Does nothing the second time."""
        if self._memory is None:
            return
        self._memory.close()
        self._memory, self._views = None, []

    def _open_memory(self) -> Memory:
        if self._memory is None:
            raise RuntimeError("arena: this reader is closed")
        return self._memory
