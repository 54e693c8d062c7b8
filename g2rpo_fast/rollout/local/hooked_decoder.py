"""One decoding step of any model, through Hugging Face's own modules.

The backbone runs with the attention function "g2rpo_tree", which hands every layer's queries, keys and values
to the object given as `attend`. Slower than `FunctionalDecoder` on small models, but LoRA, biases, softcaps,
norms and embeddings are whatever the model says.

Dimension key: B rows, D width, H / K query / KV heads, E head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from g2rpo_fast.rollout.local.cache import Cache


class HookedDecoder:
    """Runs the backbone's forward with one token per row."""

    key_order_E: torch.Tensor | None = None

    def __init__(self, backbone: nn.Module, *, num_layers: int, dtype: torch.dtype) -> None:
        self._backbone = backbone
        self._num_layers = num_layers
        self._dtype = dtype

    def step(self, token_B: torch.Tensor, cache: Cache) -> torch.Tensor:
        """Encodes one token per row; hidden states [B, D] after the final norm."""
        hook = _Hook(cache)
        mixed = self._dtype.itemsize < 4
        with torch.autocast(token_B.device.type, self._dtype, enabled=mixed):
            out = self._backbone(
                input_ids=token_B.unsqueeze(1),
                position_ids=cache.position_B.unsqueeze(1),
                use_cache=False,
                attend=hook,
            )
        if hook.num_calls != self._num_layers:
            raise ValueError(
                f"{type(self._backbone).__name__}: wanted {self._num_layers} layers to attend through "
                f"'g2rpo_tree', got {hook.num_calls}"
            )
        return out.last_hidden_state[:, 0]


class _Hook:
    """What a layer's attention calls: [B, H, 1, E] queries in, [B, 1, H, E] out."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self.num_calls = 0

    def __call__(
        self,
        module: Any,
        q_BH1E: torch.Tensor,
        k_BK1E: torch.Tensor,
        v_BK1E: torch.Tensor,
        *,
        scaling: float,
        window: int | None = None,
        softcap: float | None = None,
    ) -> torch.Tensor:
        self.num_calls += 1
        out_BX = self._cache.attend(
            module.layer_idx,
            q_BH1E[:, :, 0].unflatten(1, (k_BK1E.shape[1], -1)),
            k_BK1E[:, :, 0],
            v_BK1E[:, :, 0],
            scale=scaling,
            softcap=softcap,
            window=window,
        )
        return out_BX.view(len(q_BH1E), 1, q_BH1E.shape[1], -1).to(q_BH1E.dtype)
