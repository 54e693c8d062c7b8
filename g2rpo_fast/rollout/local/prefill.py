"""What the local engine is given: the encoded prefixes and the LM head.

Dimension key: S stream positions, B prefixes, D width, V vocabulary, K KV heads, E head width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from g2rpo_fast.types import Ints


@dataclass(frozen=True, kw_only=True)
class Prefill:
    """Distinct prefixes, encoded as one prefix tree: each shared token once.

    Position j is on the path that ends at position i iff `j <= i < end_S[j]`.
    """

    position_S: Ints
    """Path length from the root; 0 where a tree starts."""
    end_S: Ints
    last_B: Ints
    """For each prefix, the stream position of its last token."""
    keys: Sequence[tuple[torch.Tensor, torch.Tensor]]
    """For each layer (k_SKE, v_SKE): after RoPE, KV heads not repeated."""
    hidden_SD: torch.Tensor
    """What the LM head reads (after the final norm)."""
    chosen: Sequence[torch.Tensor] = ()
    """For each layer with experts, [S, experts of a token]: where they are recorded."""


PrefillFunction = Callable[[list[tuple[int, ...]]], Prefill]
"""Encodes distinct, non-empty prefixes, with the weights of the moment."""


class Head(Protocol):
    """logits = softcap(scale * hidden @ weight^T + bias)."""

    @property
    def weight_VD(self) -> torch.Tensor: ...
    @property
    def bias_V(self) -> torch.Tensor | None: ...
    @property
    def scale(self) -> float: ...
    @property
    def softcap(self) -> float | None: ...
