"""Which tiles of the score matrix hold a visible pair: built once per micro-batch, shared by all layers.

From an END on the host in C++, at the cost of the visited pairs, and sent to the device that wants them; from
an END on a GPU in torch there. Both give the same lists (`pytorch` defines them) and wait for
nothing.

Dimension key: S packed tree positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from g2rpo_kernels.extension import EXTENSION, loaded
from g2rpo_kernels.transfer import to_device
from g2rpo_kernels.tree_attention.tile_lists.cpp import cpp_lists
from g2rpo_kernels.tree_attention.tile_lists.pytorch import torch_lists
from g2rpo_kernels.tree_attention.tile_lists.records import Cut, TileLists
from g2rpo_kernels.tree_attention.tiles import Tiles


class TilePlan:
    """The tile lists of one END mask: built on first use for each (tile shape, window), then shared.

    Made by `tile_plan`; belongs to one micro-batch. Reads nothing back from the device.
    """

    def __init__(self, end_S: Tensor, position_S: Tensor | None, device: torch.device) -> None:
        self._given = _ints(end_S), None if position_S is None else _ints(position_S)
        end_S, position_S = self._given
        given = [end_S] if position_S is None else [end_S, position_S]
        self.end_S, *positions = to_device(given, device)
        self.position_S = positions[0] if positions else None
        self._lists: dict[tuple[int, ...], TileLists] = {}

    @property
    def num_rows(self) -> int:
        return len(self.end_S)

    @property
    def device(self) -> torch.device:
        return self.end_S.device

    def lists(self, tiles: Tiles, *, heads: int, kv_heads: int, window: int | None) -> TileLists:
        """The lists for one layer: its tile shapes, its heads, its window (None: all of a path)."""
        shapes = (tiles.forward.shape, tiles.query_grad.shape, tiles.kv_grad.shape)
        blocks = (size for shape in shapes for size in shape)
        key = (*blocks, tiles.item_pairs, tiles.num_items, heads, kv_heads, -1 if window is None else window)
        if key not in self._lists:
            cut = Cut.of(tiles, self.num_rows, heads=heads, kv_heads=kv_heads)
            self._lists[key] = self._build(tiles, cut, window)
        return self._lists[key]

    def _build(self, tiles: Tiles, cut: Cut, window: int | None) -> TileLists:
        end_S, position_S = self._given
        # A compiled caller would break its graph at C++.
        on_host = end_S.device.type == "cpu" and not torch.compiler.is_compiling()
        native = loaded(EXTENSION) if on_host else None
        if native is None:
            return torch_lists(self.end_S, self.position_S, tiles, cut=cut, window=window)
        return cpp_lists(native, end_S, position_S, tiles, cut=cut, window=window, device=self.device)


def tile_plan(
    end_S: Tensor, position_S: Tensor | None = None, device: torch.device | None = None
) -> TilePlan:
    """The plan for `end_S` [S] and, for layers with a window, path positions [S]; integers on one device.

    The lists are for tensors on `device` (None: where `end_S` is). END is trusted to describe a tree
    (`cascade_plan` checks one): checking would wait for the device. Any other gives lists of no meaning, but
    within the stream.
    """
    return TilePlan(end_S, position_S, end_S.device if device is None else device)


def _ints(x_S: Tensor) -> Tensor:
    return x_S.to(torch.int32).contiguous()
