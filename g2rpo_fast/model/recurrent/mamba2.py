"""Mamba-2's scan along the paths of a tree: what `mamba2_chunk_scan` is along a sequence.

    state_i = exp(dt_i A) state_p + dt_i x_i B_i^T,    y_i = state_i C_i + D x_i,    p before i on its path

Dimension key: S stream positions, N nodes of a batch, L their padded length, H heads, G groups of them, E
head width, T state width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from g2rpo_fast.model.recurrent.scan import along_paths, chunk_of
from g2rpo_fast.model.recurrent.segments import Segments

UNBOUNDED = 0.0, float("inf")
CPU_CHUNK = 64
"""Most positions of a chunk there: longer ones, which kernels of GPUs are made for, take time and memory."""


def mamba2(
    original: Callable[..., tuple[Tensor, Tensor]],
    segments: Segments,
    x_1SHE: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    chunk_size: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = UNBOUNDED,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    **_: Any,
) -> Tensor:
    """y [1, S, H, E] by transformers' own function (names as there). B, C [1, S, G, T]; dt [1, S, H].

    Steps take their bias, softplus and limits before nodes are padded: a step of 0 leaves the state as it is.
    """
    assert z is None, "mixers gate after the scan"
    assert initial_states is None, "a forward over a tree has no cache"
    assert not return_final_states, "a forward over a tree has no cache"
    dt = dt if dt_bias is None else dt + dt_bias.to(dt.dtype)
    dt = F.softplus(dt) if dt_softplus else dt
    dt = torch.clamp(dt, *dt_limit)
    most = min(chunk_size, CPU_CHUNK) if x_1SHE.device.type == "cpu" else chunk_size
    scan = partial(_scan, original, A, D, most)
    return along_paths(scan, [x_1SHE, dt, B, C], segments)


def _scan(
    original: Callable[..., tuple[Tensor, Tensor]],
    A: Tensor,
    D: Tensor | None,
    chunk_size: int,
    padded: list[Tensor],
    initial_N: Tensor | None,
) -> tuple[Tensor, Tensor]:
    x_NLHE, dt_NLH, b_NLGT, c_NLGT = padded
    return original(
        x_NLHE,
        dt_NLH,
        A,
        b_NLGT,
        c_NLGT,
        chunk_size=chunk_of(x_NLHE.shape[1], chunk_size),
        D=D,
        z=None,
        dt_bias=None,
        dt_softplus=False,
        dt_limit=UNBOUNDED,
        initial_states=initial_N,
        return_final_states=True,
    )
