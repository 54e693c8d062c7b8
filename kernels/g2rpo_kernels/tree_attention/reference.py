"""The definition of tree attention, in plain PyTorch.

    out_i = sum_j softmax_j(s_ij) v_j,   s_ij = cap(scale * q_i . k_j),   cap(x) = softcap * tanh(x / softcap)

over the keys that query i sees: j <= i < END[j], i.e. i's own path back to its root, and with a window also
position[i] - position[j] < window, a distance along the path.

Dimension key: S packed tree positions, H query heads, K key/value heads, R = H / K, E head width.
"""

from __future__ import annotations

import torch


def visible(
    end_S: torch.Tensor, position_S: torch.Tensor | None = None, window: int | None = None
) -> torch.Tensor:
    """The mask [S, S], bool: may query i (row) see key j (column)?"""
    row_S = torch.arange(len(end_S), device=end_S.device)
    seen_SS = (row_S <= row_S[:, None]) & (row_S[:, None] < end_S)
    if window is not None:
        assert position_S is not None
        seen_SS &= position_S[:, None] - position_S < window
    return seen_SS


def tree_attention_reference(
    q_SHE: torch.Tensor,
    k_SKE: torch.Tensor,
    v_SKE: torch.Tensor,
    end_S: torch.Tensor,
    *,
    position_S: torch.Tensor | None,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    """out [S, H, E] in q's dtype, by S x S scores in at least float32; gradients by autograd."""
    dtype = torch.promote_types(q_SHE.dtype, torch.float32)
    q_SKRE = q_SHE.unflatten(1, (k_SKE.shape[1], -1)).to(dtype)
    score_KRSS = torch.einsum("ikre,jke->krij", q_SKRE, k_SKE.to(dtype)) * scale
    if softcap is not None:
        score_KRSS = softcap * torch.tanh(score_KRSS / softcap)
    score_KRSS = score_KRSS.masked_fill(~visible(end_S, position_S, window), float("-inf"))
    out_SKRE = torch.einsum("krij,jke->ikre", score_KRSS.softmax(-1), v_SKE.to(dtype))
    return out_SKRE.flatten(1, 2).to(q_SHE.dtype)
