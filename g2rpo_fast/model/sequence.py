"""Attention along plain sequences, for a model that selected tree attention and decodes with its own cache.

Dimension key: B rows, S queries, T keys, H query heads, K key/value heads, E head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SequenceAttend:
    """An `attend` (see `hook.Attend`) of rows without padding, whose keys end with those of their queries."""

    def __call__(
        self,
        module: nn.Module,
        q_BHSE: Tensor,
        k_BKTE: Tensor,
        v_BKTE: Tensor,
        *,
        scaling: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        """out [B, S, H, E]; a cache may have dropped the keys before the window."""
        queries, keys = q_BHSE.shape[2], k_BKTE.shape[2]
        if softcap is None and window is None and queries in (1, keys):
            return F.scaled_dot_product_attention(
                q_BHSE, k_BKTE, v_BKTE, is_causal=queries > 1, scale=scaling, enable_gqa=True
            ).transpose(1, 2)
        sees_ST = _sees(queries, keys, window, q_BHSE.device)
        if softcap is None:
            return F.scaled_dot_product_attention(
                q_BHSE, k_BKTE, v_BKTE, attn_mask=sees_ST, scale=scaling, enable_gqa=True
            ).transpose(1, 2)
        shared = q_BHSE.shape[1] // k_BKTE.shape[1]
        k_BHTE, v_BHTE = (x.repeat_interleave(shared, 1) for x in (k_BKTE, v_BKTE))
        score_BHST = softcap * torch.tanh(q_BHSE @ k_BHTE.transpose(2, 3) * (scaling / softcap))
        weight_BHST = score_BHST.masked_fill(~sees_ST, float("-inf")).softmax(-1)
        return (weight_BHST @ v_BHTE).transpose(1, 2)


def _sees(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor:
    """[S, T]: causal, and within the window."""
    position_T = torch.arange(keys, device=device)
    distance_ST = position_T[keys - queries :, None] - position_T
    sees_ST = distance_ST >= 0
    return sees_ST if window is None else sees_ST & (distance_ST < window)
