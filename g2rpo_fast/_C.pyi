"""The extension built from csrc/."""

from typing import Any, TypedDict

import numpy.typing as npt
from typing_extensions import Buffer

from g2rpo_fast.types import Bools, Floats, Ints, Longs

class PlanFields(TypedDict):
    token_S: Ints
    position_S: Ints
    end_S: Ints
    source_T: Ints
    target_T: Ints
    member_ptr_T1: Longs
    member_M: Longs
    row_B: Ints
    last_B: Ints
    unshared_tokens: int
    node_start_Q: Longs
    node_parent_Q: Longs

def plan_trees(
    ids_N: Ints,
    ptr_R1: Longs,
    trained_N: Bools,
    group_R: Ints,
    token_budget: int | None,
    min_saved: int,
    whole: bool,
) -> list[PlanFields]: ...
def rms_norm_forward(x: Floats, w: Floats, eps: float, y: Floats, scale: Floats, threads: int) -> None: ...
def rms_norm_backward(
    x: Floats, w: Floats, scale: Floats, dy: Floats, dx: Floats, dw: Floats, threads: int
) -> None: ...
def swiglu_forward(gate: Floats, up: Floats, out: Floats, threads: int) -> None: ...
def swiglu_backward(
    gate: Floats, up: Floats, dout: Floats, dgate: Floats, dup: Floats, threads: int
) -> None: ...
def own_attention(
    query: Floats,
    keys: Floats,
    values: Floats,
    prefix: Floats,
    lse: Floats,
    out: Floats,
    first: int,
    last: int,
    scale: float,
    threads: int,
) -> None: ...

class SharedMemory(Buffer):
    """A mapping of an anonymous file; unmapped when the last tensor on it goes."""

    fd: int
    """-1 where it was opened, not created."""
    inode: int
    nbytes: int
    @staticmethod
    def create(nbytes: int, threads: int) -> SharedMemory: ...
    @staticmethod
    def open(owner: int, fd: int, inode: int, nbytes: int, threads: int) -> SharedMemory: ...
    def close(self) -> None:
        """Closes the descriptor; the mapping stays."""

class ControlPage:
    """What the slots hold; the owner writes, others read."""

    memory: SharedMemory
    closed: bool
    owner_alive: bool
    @staticmethod
    def create(memory: SharedMemory, fingerprint: int) -> ControlPage: ...
    @staticmethod
    def open(memory: SharedMemory, fingerprint: int) -> ControlPage: ...
    def begin(self, slot: int, version: int) -> None: ...
    def publish(self, slot: int, nbytes: int, checksum: int | None) -> None: ...
    def read(self, slot: int) -> tuple[int, int, int, int | None]:
        """(sequence: 0 = never written, odd = being written; version; bytes; checksum)."""
    def close(self) -> None: ...

def checksum(array: Buffer | npt.NDArray[Any], threads: int) -> int: ...

class CudaRuntime:
    """libcudart, found by dlopen."""

    path: str
    @staticmethod
    def load(names: list[str]) -> CudaRuntime: ...

class CudaMemory:
    """Of one GPU; freed, or closed, when the last tensor on it goes."""

    nbytes: int
    handle: bytes
    __cuda_array_interface__: dict[str, Any]
    @staticmethod
    def create(runtime: CudaRuntime, device: int, nbytes: int) -> CudaMemory: ...
    @staticmethod
    def open(runtime: CudaRuntime, device: int, nbytes: int, handle: bytes) -> CudaMemory: ...

class CudaEvent:
    handle: bytes
    @staticmethod
    def create(runtime: CudaRuntime, device: int) -> CudaEvent: ...
    @staticmethod
    def open(runtime: CudaRuntime, device: int, handle: bytes) -> CudaEvent: ...
    def record(self, stream: int) -> None: ...
    def wait(self, stream: int) -> None: ...

class PinnedMemory:
    """Lets go of the pages when it goes."""

    @staticmethod
    def create(runtime: CudaRuntime, device: int, memory: SharedMemory) -> PinnedMemory: ...
