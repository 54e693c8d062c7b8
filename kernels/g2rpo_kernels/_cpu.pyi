"""The extension built from csrc/kernels/."""

from typing import Any

Tensor = Any
"""On the CPU: PyTorch's or another that speaks DLPack, or the capsule that `to_dlpack` makes of one, which is
quicker."""

def row_sums(
    z: Tensor,
    target: Tensor,
    divisor: float,
    keep_exp: bool,
    max: Tensor,
    rest: Tensor,
    moment: Tensor,
    target_logit: Tensor,
    threads: int,
) -> None: ...
def row_gradients(
    z: Tensor,
    target: Tensor,
    divisor: float,
    squashed: bool,
    max: Tensor,
    log_sum: Tensor,
    scale: Tensor,
    entropy: Tensor | None,
    at_target: Tensor,
    dz: Tensor,
    threads: int,
) -> None: ...
def query_lists(
    end: Tensor, position: Tensor | None, window: int, block_q: int, block_kv: int, work: Tensor, key: Tensor
) -> None: ...
def kv_lists(
    end: Tensor,
    position: Tensor | None,
    window: int,
    block_q: int,
    block_kv: int,
    least: int,
    most: int,
    work: Tensor,
    query: Tensor,
    slot: Tensor,
) -> None: ...
