"""FlexAttention under a BlockMask made from tree attention's tile lists: the same numbers as the reference.

Dimension key: S packed tree positions.
"""

from __future__ import annotations

import torch
from g2rpo_kernels.tree_attention import tile_plan, tree_attention
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from flex_mask import block_mask


def test_block_mask_equals_the_evaluated_mask() -> None:
    end_S = torch.tensor([420] * 150 + [250] * 100 + [300] * 50 + [420] * 120)
    mask = block_mask(tile_plan(end_S))
    whole = create_block_mask(mask.mask_mod, None, None, 420, 420, device="cpu")
    assert torch.equal(mask.to_dense(), whole.to_dense())
    assert torch.equal(mask.full_kv_num_blocks, whole.full_kv_num_blocks)
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(420, 2, 16, generator=g, dtype=torch.float64) for _ in range(3))
    out = flex_attention(*(x.transpose(0, 1)[None] for x in (q, k, v)), block_mask=mask, scale=0.4)
    wanted_SHE = tree_attention(q, k, v, end_S, scale=0.4, impl="reference")
    torch.testing.assert_close(out[0].transpose(0, 1), wanted_SHE, rtol=0, atol=1e-12)
    assert wanted_SHE.abs().max() > 0.1
