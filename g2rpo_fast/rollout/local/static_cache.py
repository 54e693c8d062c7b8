"""The KV cache with what a recorded step needs: between two layouts, shapes and addresses stay as they are.

Which slot a token goes into, and which slots are seen, are tensors that `advance` changes in place; `attend`
reads every slot, used or not. `keep`, and growing, make a new layout.

Dimension key: B rows being decoded, L slots, K KV heads, E head width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from g2rpo_fast.rollout.local.cache import Cache
from g2rpo_fast.rollout.local.shared_prefix import SharedPrefix

GROWTH = 128
"""Slots that the cache grows by. A layout costs its user about three plain steps; a slot, used or not, is
read at every step."""


class StaticCache(Cache):
    """`Cache`, but that `attend` does the same to the same tensors at every step of one layout.

    Attributes:
        num_layouts: counts layouts; a recorded step is stale when this has changed.
    """

    keep_share = 0.5  # dropping rows makes a new layout

    def __init__(
        self,
        prefix: SharedPrefix,
        position_B: torch.Tensor,
        *,
        heads: Sequence[tuple[int, int]],
        num_positions: int,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(prefix, position_B, heads=heads, num_positions=num_positions, dtype=dtype)
        self.num_layouts = 0
        self._compiled = False  # it reads what `advance` counts in Python
        self._slot_1 = torch.zeros(1, dtype=torch.int64, device=position_B.device)

    def advance(self) -> None:
        """Opens a slot for the token that is about to be encoded."""
        self._num_used += 1
        if self._num_used > self._num_slots:
            self._grow()
        self.position_B.add_(1)
        self._slot_1.add_(1)
        self._bias_L.index_fill_(0, self._slot_1, 0.0)

    def _grow(self) -> None:
        self._add_slots(GROWTH)
        self._slot_L = torch.arange(self._num_slots, device=self.position_B.device)
        self._bias_L = torch.zeros_like(self._slot_L, dtype=self._score_dtype)
        self._bias_L[self._num_used - 1 :] = -torch.inf
        self._show()

    def _show(self) -> None:
        self._length = self._num_slots
        super()._show()
        self.num_layouts += 1

    def _store(self, layer: int, k_BKE: torch.Tensor, v_BKE: torch.Tensor) -> None:
        for cached_BKLE, new_BKE in zip(self._kv[layer], (k_BKE, v_BKE)):
            cached_BKLE.index_copy_(2, self._slot_1, new_BKE.to(self._dtype).unsqueeze(2))

    def _bias(self, window: int | None) -> torch.Tensor:
        if window is None:
            return self._bias_L
        far_L = (self._slot_1 - self._slot_L >= window) & (self._slot_L > 0)
        return self._bias_L.masked_fill(far_L, -torch.inf)
