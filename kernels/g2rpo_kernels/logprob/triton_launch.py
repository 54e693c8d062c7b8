"""What every launch of a row kernel needs: the tile of this chip, the device made current, pinned options.

Dimension key: T rows, V vocabulary.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton import knobs


class Tile(NamedTuple):
    """How one program sweeps its row."""

    block_v: int
    num_warps: int
    stages: int
    """Tiles in flight: with more than one, loads go through shared memory ahead of their use."""

    @property
    def options(self) -> dict[str, Any]:
        """Launch options. Fusion into FMA changed its default in Triton 3.10: pinned, so that bits stay."""
        return {
            "BLOCK_V": self.block_v,
            "STAGES": self.stages,
            "num_warps": self.num_warps,
            "enable_fp_fusion": False,
        }


TILES: dict[tuple[int, int], Tile] = {
    (8, 2): Tile(2048, 8, 4),
    (8, 4): Tile(2048, 8, 3),
    (9, 2): Tile(2048, 8, 4),
    (9, 4): Tile(2048, 8, 3),
    (10, 2): Tile(2048, 8, 4),
    (10, 4): Tile(2048, 8, 3),
}
"""(capability class, bytes per logit) -> tile. 8 is sm_8x; 9 is sm_90; 10 is sm_100 and later."""

LOGIT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@torch.compiler.assume_constant_result
def interpreting() -> bool:
    """Whether kernels run in Triton's interpreter, on CPU tensors."""
    return knobs.runtime.interpret


def tile_for(logits_TV: Tensor) -> Tile:
    """The static choice: ranks and runs agree bit for bit. The interpreter takes that of sm_90."""
    major = 9
    if logits_TV.device.type == "cuda":
        major = torch.cuda.get_device_capability(logits_TV.device)[0]
    if major < 8:
        raise ValueError(f"impl='triton': wanted compute capability 8.0 or later, got {major}.x")
    return TILES[min(major, 10), logits_TV.dtype.itemsize]


def check_logits(logits_TV: Tensor) -> None:
    """Raise ValueError for what no row kernel takes."""
    if logits_TV.dtype not in LOGIT_DTYPES:
        raise ValueError(f"logits_TV: wanted one of {LOGIT_DTYPES} with impl='triton', got {logits_TV.dtype}")
    if logits_TV.shape[1] == 0 or logits_TV.shape[1] >= 1 << 31:
        raise ValueError(f"logits_TV: wanted 1 to 2**31 - 1 columns, got {logits_TV.shape[1]}")


def on_device(tensor: Tensor) -> AbstractContextManager[object]:
    """Makes the tensor's device current: Triton launches on the current one."""
    return torch.cuda.device(tensor.device) if tensor.device.type == "cuda" else nullcontext()


def scaling(temperature: float, softcap: float | None) -> dict[str, Any]:
    """Arguments of `effective`. Reciprocals: a common relative error of all logits moves logp by rounding."""
    return {
        "scale": (1.0 if softcap is None else softcap) / temperature,
        "inv_softcap": 0.0 if softcap is None else 1 / softcap,
        "SOFTCAP": softcap is not None,
    }
