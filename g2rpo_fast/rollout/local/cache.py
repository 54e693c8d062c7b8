"""The KV cache of one wave: shared prefixes, and each row's own tokens behind them.

    out = (e^lse out_prefix + sum_i e^{s_i} v_i) / (e^lse + sum_i e^{s_i}),   s_i = scale q k_i

with lse and out_prefix those of the prefix alone. All rows of a wave are at the same step, so their own
tokens need no mask between rows. Slot 0 of the own tokens stands for the whole prefix: its score is set to
lse and its value is zero, so that one softmax does the merge.

Dimension key: B rows being decoded, L slots (padded to a tile), K KV heads, Q query heads per KV head, E head
width. X stands for (row, KV head).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from g2rpo_fast import _C
from g2rpo_fast.rollout.local.prefix_attention import scores
from g2rpo_fast.rollout.local.shared_prefix import KEY_TILE, SharedPrefix
from g2rpo_fast.types import Longs

GROWTH = 64
"""Slots that the cache grows by; a multiple of the tile."""


class Cache:
    """One step's attention for all rows: `advance`, then `attend` once per layer.

    Attributes:
        keep_share: rows that have ended are worth dropping when at most this share of the batch is alive.

    Args:
        position_B: RoPE position of each row's first token behind its prefix.
        heads: for each layer, how many KV heads it has and how wide they are.
        num_positions: no row gets longer; windows that reach as far hide nothing.
    """

    keep_share = 0.75

    def __init__(
        self,
        prefix: SharedPrefix,
        position_B: torch.Tensor,
        *,
        heads: Sequence[tuple[int, int]],
        num_positions: int,
        dtype: torch.dtype,
    ) -> None:
        self.position_B = position_B - 1
        """RoPE position of the token that is being encoded."""
        self._prefix = prefix
        self._num_positions = num_positions
        self._dtype, self._score_dtype = dtype, torch.promote_types(dtype, torch.float32)
        self._compiled = dtype == torch.float32 and position_B.device.type == "cpu"
        self._num_used = 1
        self._length = 0
        like = torch.empty(0, dtype=dtype, device=position_B.device)
        self._kv = [(like.new_empty(len(position_B), k, 0, width),) * 2 for k, width in heads]
        self._visible_kv = self._kv

    @property
    def num_rows(self) -> int:
        return len(self.position_B)

    def advance(self) -> None:
        """Opens a slot for the token that is about to be encoded."""
        self.position_B.add_(1)
        self._num_used += 1
        if self._num_used > self._num_slots:
            self._grow()
        if self._num_used > self._length:
            self._length += KEY_TILE
            self._show()
        first = self._num_slots - self._num_used
        self._bias_L = self._step_L[first : first + self._length]

    def attend(
        self,
        layer: int,
        q_BKQE: torch.Tensor,
        k_BKE: torch.Tensor,
        v_BKE: torch.Tensor,
        *,
        scale: float,
        softcap: float | None = None,
        window: int | None = None,
    ) -> torch.Tensor:
        """Stores this token's key and value; attention of its queries, [B, K * Q * E] in the cache's dtype.

        `window` hides keys at a distance of `window` or more along the path.
        """
        if window is not None and window >= self._num_positions:
            window = None
        self._store(layer, k_BKE, v_BKE)
        q_XQE = q_BKQE.flatten(0, 1).to(self._dtype)
        prefix_XE, lse_X = self._prefix.attend(
            layer, q_XQE, scale=scale, softcap=softcap, window=window, position_B=self.position_B
        )
        if softcap is None and self._compiled:
            return self._by_cpp(layer, q_XQE, prefix_XE, lse_X, scale, window).view(len(q_BKQE), -1)
        k_XEL, v_XLE = self._visible_kv[layer]
        score_XQL = self._scores(q_XQE, k_XEL, scale, softcap, self._bias(window))
        score_XQL.select(2, 0).copy_(lse_X.view(score_XQL.shape[:2]))
        weight_XQL = torch.softmax(score_XQL, -1).to(self._dtype)
        out_XQE = torch.bmm(weight_XQL, v_XLE)
        out_XQE.addcmul_(prefix_XE.view(out_XQE.shape), weight_XQL.narrow(2, 0, 1))
        return out_XQE.view(len(q_BKQE), -1)

    def _by_cpp(
        self,
        layer: int,
        q_XQE: torch.Tensor,
        prefix_XE: torch.Tensor,
        lse_X: torch.Tensor,
        scale: float,
        window: int | None,
    ) -> torch.Tensor:
        """The same in one sweep over the row's own tokens: [X, Q, E]."""
        out_XQE = torch.empty(q_XQE.shape, dtype=self._dtype)
        first = 1 if window is None else max(1, self._num_used - window)
        key_XLE, value_XLE = (x_BKLE.flatten(0, 1) for x_BKLE in self._kv[layer])
        q_XQE = q_XQE if q_XQE.stride(2) == 1 else q_XQE.contiguous()
        arrays = [x.numpy() for x in (q_XQE, key_XLE, value_XLE, prefix_XE, lse_X, out_XQE)]
        _C.own_attention(
            *arrays, first=first, last=self._num_used, scale=scale, threads=torch.get_num_threads()
        )
        return out_XQE

    def keep(self, rows: Longs) -> None:
        """Drops all other rows; row `rows[i]` becomes row i."""
        index = torch.from_numpy(rows).to(self.position_B.device)
        self.position_B = self.position_B.index_select(0, index)
        self._prefix.keep(rows)
        self._visible_kv = []  # the old tensors go layer by layer
        for layer, (k_BKLE, v_BKLE) in enumerate(self._kv):
            self._kv[layer] = k_BKLE.index_select(0, index), v_BKLE.index_select(0, index)
        self._show()

    @property
    def _num_slots(self) -> int:
        return self._kv[0][0].shape[2]

    def _grow(self) -> None:
        self._add_slots(GROWTH)
        self._step_L = torch.zeros(
            self._num_slots + KEY_TILE, dtype=self._score_dtype, device=self.position_B.device
        )
        self._step_L[self._num_slots :] = -torch.inf
        self._show()

    def _add_slots(self, num_slots: int) -> None:
        """To every layer. Unused ones are zero: their scores must be finite before the bias."""
        self._visible_kv = []
        for layer, pair in enumerate(self._kv):
            k_BKLE, v_BKLE = (torch.nn.functional.pad(x_BKLE, (0, 0, 0, num_slots)) for x_BKLE in pair)
            self._kv[layer] = k_BKLE, v_BKLE

    def _store(self, layer: int, k_BKE: torch.Tensor, v_BKE: torch.Tensor) -> None:
        """Puts the token's key and value into the slot that `advance` opened."""
        for cached_BKLE, new_BKE in zip(self._kv[layer], (k_BKE, v_BKE)):
            cached_BKLE.select(2, self._num_used - 1).copy_(new_BKE)

    def _bias(self, window: int | None) -> torch.Tensor:
        """[L], 0 for the slots that are seen and -inf for others; slot 0, the prefix, is always seen."""
        if window is None or self._num_used - 1 <= window:
            return self._bias_L
        bias_L = self._bias_L.clone()
        bias_L[1 : self._num_used - window] = -torch.inf
        return bias_L

    def _show(self) -> None:
        """The slots that are read: keys transposed, values, with (row, KV head) as one dimension."""
        self._visible_kv = [
            (k_BKLE.flatten(0, 1)[:, : self._length].transpose(1, 2), v_BKLE.flatten(0, 1)[:, : self._length])
            for k_BKLE, v_BKLE in self._kv
        ]

    def _scores(
        self,
        q_XQE: torch.Tensor,
        k_XEL: torch.Tensor,
        scale: float,
        softcap: float | None,
        bias_L: torch.Tensor,
    ) -> torch.Tensor:
        if softcap is None and self._dtype == self._score_dtype:
            return torch.baddbmm(bias_L, q_XQE, k_XEL, alpha=scale)
        return scores(q_XQE, k_XEL, scale, softcap).add_(bias_L)
