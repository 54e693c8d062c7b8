"""Memory of the arena where a GPU takes part: on the GPU, shared by CUDA IPC, or pinned on the host.

GPU memory comes from cudaMalloc itself. PyTorch's allocator is not asked: with expandable segments its memory
has no IPC handle, and without them a handle exports a whole segment with other tensors in it. PyTorch sees
the memory through `__cuda_array_interface__`, without a copy. Each tensor on it keeps it; freeing waits for
the device. Devices are matched by UUID: indices depend on CUDA_VISIBLE_DEVICES.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from g2rpo_fast import _C
from g2rpo_fast.rollout.sync.host_memory import SLOTS, address_of, open_shared


class CudaIpcMemory:
    """Memory of one GPU and an event for each slot. The exporter must live while importers use it."""

    def __init__(self, memory: _C.CudaMemory, events: list[_C.CudaEvent], device: torch.device) -> None:
        self._memory: _C.CudaMemory | None = memory
        self._events = events
        self._device = device
        self.bytes_B: Tensor = torch.as_tensor(memory, device=device)
        assert self.bytes_B.data_ptr() == memory.__cuda_array_interface__["data"][0], "a copy was made"

    @classmethod
    def create(cls, nbytes: int, device: torch.device) -> CudaIpcMemory:
        runtime, index = cuda_runtime(), cuda_index("cuda", device)
        events = [_C.CudaEvent.create(runtime, index) for _ in range(SLOTS)]
        return cls(_C.CudaMemory.create(runtime, index, nbytes), events, device)

    @classmethod
    def open(cls, owner: int, address: dict[str, Any], device: torch.device) -> CudaIpcMemory:
        """RuntimeError where `device` is another GPU than the memory's, or IPC is refused."""
        if owner == os.getpid():
            raise RuntimeError("arena: CUDA memory cannot be opened in the process that exported it")
        index, wanted = cuda_index("cuda", device), address["device_uuid"]
        if uuid_of(device) != wanted:
            raise RuntimeError(
                f"arena: wanted the GPU of its memory, {wanted}, got {device}, which is {uuid_of(device)}"
            )
        runtime = cuda_runtime()
        memory = _C.CudaMemory.open(runtime, index, address["nbytes"], bytes.fromhex(address["handle"]))
        handles = [bytes.fromhex(handle) for handle in address["events"]]
        return cls(memory, [_C.CudaEvent.open(runtime, index, handle) for handle in handles], device)

    def address(self) -> dict[str, Any]:
        """RuntimeError where the driver refuses IPC."""
        assert self._memory is not None
        return {
            "nbytes": self._memory.nbytes,
            "device_uuid": uuid_of(self._device),
            "handle": self._memory.handle.hex(),
            "events": [event.handle.hex() for event in self._events],
        }

    def record(self, slot: int) -> None:
        self._events[slot].record(torch.cuda.current_stream(self._device).cuda_stream)

    def await_record(self, slot: int) -> None:
        self._events[slot].wait(torch.cuda.current_stream(self._device).cuda_stream)

    def close(self) -> None:
        self._memory, self._events = None, []
        del self.bytes_B


class PinnedHostMemory:
    """An anonymous file that each process with a GPU pins for itself: copies at the speed of the bus."""

    def __init__(self, shared: _C.SharedMemory, pinned: _C.PinnedMemory | None, device: torch.device) -> None:
        self._shared = shared
        self._pinned = pinned
        self._device = device
        self.bytes_B = torch.frombuffer(shared, dtype=torch.uint8)

    @classmethod
    def create(cls, nbytes: int, device: torch.device) -> PinnedHostMemory:
        index = cuda_index("host", device)
        shared = _C.SharedMemory.create(nbytes, torch.get_num_threads())
        return cls(shared, _C.PinnedMemory.create(cuda_runtime(), index, shared), device)

    @classmethod
    def open(cls, owner: int, address: dict[str, Any], device: torch.device) -> PinnedHostMemory:
        """Pinned only for a reader with a GPU."""
        shared = open_shared(owner, address)
        if device.type != "cuda":
            return cls(shared, None, device)
        index = cuda_index("host", device)
        return cls(shared, _C.PinnedMemory.create(cuda_runtime(), index, shared), device)

    def address(self) -> dict[str, Any]:
        return address_of(self._shared)

    def record(self, slot: int) -> None:
        """Waits for the copies: no event reaches across to a reader that may have no GPU."""
        torch.cuda.current_stream(self._device).synchronize()

    def await_record(self, slot: int) -> None:
        """Nothing: the message that names the slot comes after the copies."""

    def close(self) -> None:
        """Unpins: only when no copy is in flight. Pageable memory stays for tensors that are left."""
        self._pinned = None
        self._shared.close()


def cuda_index(kind: str, device: torch.device) -> int:
    """The number of a GPU that can be used; ValueError says what is missing."""
    if device.type != "cuda":
        raise ValueError(f"kind={kind!r}: wanted a CUDA device, got {device}")
    if not torch.cuda.is_available():
        built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPUs only"
        raise ValueError(
            f"kind={kind!r}: wanted a usable GPU, got none (torch {torch.__version__} is built for {built})"
        )
    return device.index


def uuid_of(device: torch.device) -> str:
    return str(torch.cuda.get_device_properties(device).uuid)


def cuda_runtime() -> _C.CudaRuntime:
    """The CUDA runtime, best the one that PyTorch has loaded; RuntimeError with all that was tried."""
    return _C.CudaRuntime.load(runtime_names())


def runtime_names() -> list[str]:
    """Sonames, PyTorch's CUDA version first, then the files of the pip packages that bring the runtime."""
    majors = dict.fromkeys([(torch.version.cuda or "13").split(".")[0], "13", "12"])
    names = [f"libcudart.so.{major}" for major in majors]
    spec = find_spec("nvidia")
    folders = [Path(torch.__file__).parent / "lib"]
    for root in (spec.submodule_search_locations if spec else None) or []:
        folders += sorted(Path(root).glob("*/lib"))
    return names + [str(folder / name) for folder in folders for name in names if (folder / name).exists()]
