"""A FlexAttention BlockMask from tree attention's tile lists: no S x S mask is evaluated.

Dimension key: S packed tree positions, M query tiles, N key tiles.
"""

from __future__ import annotations

import torch
from g2rpo_kernels.tree_attention import TilePlan
from g2rpo_kernels.tree_attention.tiles import Tile, Tiles
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask


def block_mask(plan: TilePlan, block: int = 128) -> BlockMask:
    """The mask of `plan`'s END over tiles of `block` x `block`, for q, k and v of [1, heads, S, E]."""
    size = plan.num_rows
    tile = Tile(block_q=block, block_kv=block, warps=4, stages=1)
    tiles = Tiles(forward=tile, query_grad=tile, kv_grad=tile)
    lists = plan.lists(tiles, heads=1, kv_heads=1, window=None).forward
    num_tiles = len(lists.work_P4)
    _, first_M, full_M, count_M = lists.work_P4[lists.work_P4[:, 0].argsort()].long().T
    end_S = torch.nn.functional.pad(plan.end_S, (0, num_tiles * block - size))

    def entries(first_M: Tensor) -> Tensor:
        """[1, 1, M, N]: the lists' entries from `first_M` on; what follows a list's end is not read."""
        place_MN = first_M[:, None] + torch.arange(num_tiles, device=plan.device)
        return lists.key_L[place_MN.clamp_(max=len(lists.key_L) - 1)][None, None]

    def seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < end_S[key])

    return BlockMask.from_kv_blocks(
        kv_num_blocks=(count_M - full_M).int()[None, None],
        kv_indices=entries(first_M + full_M),
        full_kv_num_blocks=full_M.int()[None, None],
        full_kv_indices=entries(first_M),
        BLOCK_SIZE=block,
        mask_mod=seen,
        seq_lengths=(size, size),
    )
