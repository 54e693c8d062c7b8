"""The extension built from csrc/kernels/."""

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
Longs = npt.NDArray[np.int64]
Ints = npt.NDArray[np.int32]

def row_sums(
    z: Floats,
    target: Longs,
    divisor: float,
    keep_exp: bool,
    max: Floats,
    rest: Floats,
    moment: Floats,
    target_logit: Floats,
    threads: int,
) -> None: ...
def row_gradients(
    z: Floats,
    target: Longs,
    divisor: float,
    squashed: bool,
    max: Floats,
    log_sum: Floats,
    scale: Floats,
    entropy: Floats | None,
    at_target: Floats,
    dz: Floats,
    threads: int,
) -> None: ...
def query_lists(
    end: Ints, position: Ints | None, window: int, block_q: int, block_kv: int, work: Ints, key: Ints
) -> None: ...
def kv_lists(
    end: Ints,
    position: Ints | None,
    window: int,
    block_q: int,
    block_kv: int,
    least: int,
    most: int,
    work: Ints,
    query: Ints,
    slot: Ints,
) -> None: ...
