"""The KV cache of one wave: shared prefixes, and each row's own tokens behind them.

    out = (exp(lse_prefix) out_prefix + sum_i exp(s_i) v_i) / (exp(lse_prefix) + sum_i exp(s_i)),   s_i = scale q k_i

All rows of a wave are at the same step, so their own tokens need no mask between rows. Slot 0 of the own
tokens stands for the whole prefix: its score is set to lse_prefix and its value is zero, so that one softmax
does the merge.

Dimension key: B rows being decoded, L slots (padded to a tile), K KV heads, Q query heads per KV head,
H = K Q query heads, E head width. X stands for (row, KV head).
"""

from __future__ import annotations

import torch

from g2rpo_fast.rollout.prefix_attention import scores
from g2rpo_fast.rollout.shared_prefix import KEY_TILE, SharedPrefix
from g2rpo_fast.types import Longs

GROWTH = 64
"""Slots that the cache grows by."""


class Cache:
    """One step's attention for all rows, layer by layer: `advance`, then `attend` once per layer."""

    def __init__(
        self,
        prefix: SharedPrefix,
        position_B: torch.Tensor,
        *,
        num_layers: int,
        num_kv: int,
        width: int,
        num_positions: int,
        dtype: torch.dtype,
    ) -> None:
        self.position_B = position_B
        """RoPE position of the token that is being encoded."""
        self.dtype = dtype
        self._prefix = prefix
        self._num_kv = num_kv
        self._num_positions = num_positions
        self._num_used = 1
        self._num_slots = 0
        empty = torch.empty(len(position_B) * num_kv, 0, width, dtype=dtype, device=position_B.device)
        self._kv = [(empty, empty) for _ in range(num_layers)]

    @property
    def num_rows(self) -> int:
        return len(self.position_B)

    def advance(self) -> None:
        """Opens a slot for the token that is about to be encoded."""
        if self._num_used > 1:
            self.position_B = self.position_B + 1
        self._num_used += 1
        if self._num_used > self._num_slots:
            self._num_slots += GROWTH
            for layer, pair in enumerate(self._kv):
                self._kv[layer] = (self._grown(pair[0]), self._grown(pair[1]))
        length = -(-self._num_used // KEY_TILE) * KEY_TILE
        self._length = length
        self._bias_11L = torch.zeros(1, 1, length, dtype=self._score_dtype, device=self.position_B.device)
        self._bias_11L[..., self._num_used :] = -torch.inf

    def attend(
        self,
        layer: int,
        q_BHE: torch.Tensor,
        k_BKE: torch.Tensor,
        v_BKE: torch.Tensor,
        *,
        scale: float,
        softcap: float | None = None,
        window: int | None = None,
    ) -> torch.Tensor:
        """Stores this token's key and value; attention of its queries, [B, H * E] in the cache's dtype.

        `window` hides keys at a distance of `window` or more along the path.
        """
        if window is not None and window >= self._num_positions:
            window = None
        k_XLE, v_XLE = self._kv[layer]
        slot, (num_rows, _, width) = self._num_used - 1, k_BKE.shape
        k_XLE.view(num_rows, self._num_kv, -1, width)[:, :, slot].copy_(k_BKE)
        v_XLE.view(num_rows, self._num_kv, -1, width)[:, :, slot].copy_(v_BKE)
        q_BHE = q_BHE.to(self.dtype)
        prefix_XE, lse_X = self._prefix.attend(
            layer, q_BHE, scale=scale, softcap=softcap, window=window, position_B=self.position_B
        )
        q_XQE = q_BHE.reshape(num_rows * self._num_kv, -1, width)
        score_XQL = self._scores(q_XQE, k_XLE[:, : self._length], scale, softcap, window)
        score_XQL[:, :, 0] = lse_X.view(score_XQL.shape[:2])
        weight_XQL = torch.softmax(score_XQL, -1).to(self.dtype)
        out_XQE = torch.bmm(weight_XQL, v_XLE[:, : self._length])
        out_XQE.addcmul_(prefix_XE.view(out_XQE.shape), weight_XQL[:, :, :1])
        return out_XQE.view(num_rows, -1)

    def keep(self, rows: Longs) -> None:
        """Drops all other rows; row `rows[i]` becomes row i."""
        index = torch.from_numpy(rows).to(self.position_B.device)
        num_rows = self.num_rows
        self.position_B = self.position_B.index_select(0, index)
        self._prefix.keep(rows)
        for layer, pair in enumerate(self._kv):
            k_XLE, v_XLE = (x.unflatten(0, (num_rows, -1)).index_select(0, index).flatten(0, 1) for x in pair)
            self._kv[layer] = (k_XLE, v_XLE)

    @property
    def _score_dtype(self) -> torch.dtype:
        return torch.promote_types(self.dtype, torch.float32)

    def _scores(
        self,
        q_XQE: torch.Tensor,
        k_XLE: torch.Tensor,
        scale: float,
        softcap: float | None,
        window: int | None,
    ) -> torch.Tensor:
        bias_11L = self._bias_11L
        if window is not None and self._num_used - 1 > window:
            bias_11L = bias_11L.clone()
            bias_11L[..., 1 : self._num_used - window] = -torch.inf
        if softcap is None and q_XQE.dtype == bias_11L.dtype:
            return torch.baddbmm(bias_11L, q_XQE, k_XLE.transpose(1, 2), alpha=scale)
        return scores(q_XQE, k_XLE, scale, softcap).add_(bias_11L)

    def _grown(self, x_XLE: torch.Tensor) -> torch.Tensor:
        grown_XLE = x_XLE.new_zeros(x_XLE.shape[0], self._num_slots, x_XLE.shape[2])
        grown_XLE[:, : x_XLE.shape[1]] = x_XLE
        return grown_XLE
