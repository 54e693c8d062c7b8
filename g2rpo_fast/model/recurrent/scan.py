"""A scan along the paths of a tree, level by level: a node begins with the state that its parent ended with.

All nodes of a level are scanned side by side, those of alike length in one batch. Padding comes after all
that is read, and must leave a state as it is. For the backward pass inputs and states are kept and batches
scanned again: what a scan keeps is two to six times the rest of a layer, and a tree is one stream.

Dimension key: S stream positions, N nodes of a batch, L their padded length, M nodes of a level, P positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from g2rpo_fast.model.recurrent.moves import picked, put, repeated
from g2rpo_fast.model.recurrent.segments import SHORTEST, Batch, Segments

Scan = Callable[..., tuple[Tensor, Tensor]]
"""(inputs [N, L, ...] each, states [N, ...] or None) -> outputs [N, L, ...], final states [N, ...]."""


def along_paths(scan: Scan, inputs: Sequence[Tensor], segments: Segments) -> Tensor:
    """[1, S, ...]: outputs of `scan` over the stream's inputs, [1, S, ...] each.

    Autocast is off within: states are sums over whole paths, kept and multiplied in the dtype of the scan.
    """
    outputs: list[Tensor] = []
    state_M: Tensor | None = None
    with torch.autocast(inputs[0].device.type, enabled=False):
        for level in segments.levels:
            done = [
                checkpoint(
                    _scanned, scan, inputs, batch, state_M, use_reentrant=False, preserve_rng_state=False
                )
                for batch in level
            ]
            outputs += [output_P for output_P, _ in done]
            state_M = torch.cat([state_N for _, state_N in done])
        return picked(torch.cat(outputs), segments.order_S)[None]


def _scanned(
    scan: Scan, inputs: Sequence[Tensor], batch: Batch, state_M: Tensor | None
) -> tuple[Tensor, Tensor]:
    size = batch.num_nodes * batch.length
    shape = batch.num_nodes, batch.length
    padded = [
        put(picked(x[0], batch.position_P), batch.place_P, size).view(*shape, *x.shape[2:]) for x in inputs
    ]
    initial_N = None if state_M is None or batch.parent_N is None else repeated(state_M, batch.parent_N)
    output_NL, state_N = scan(padded, initial_N)
    return picked(output_NL.flatten(0, 1), batch.place_P), state_N


def chunk_of(length: int, most: int) -> int:
    """The chunk to scan so many positions in: a power of two, no longer than these need."""
    return min(most, max(SHORTEST, 1 << (length - 1).bit_length()))
