"""What a forward of the backbone over a plan returns.

Dimension key: S packed positions, D width, K key/value heads, E head width; of routers E
experts, K those of one token.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class TreeOutput:
    """Of a tree, or of unshared rows packed as one."""

    hidden_SD: Tensor
    """What the LM head reads (after the final norm)."""
    kv: tuple[tuple[Tensor, Tensor], ...] = ()
    """For each layer (k_SKE, v_SKE), after RoPE, heads not repeated; empty unless collected."""
    router_logits: tuple[Tensor, ...] = ()
    """[S, E] of each layer with experts, differentiable; empty unless collected."""
    chosen: tuple[Tensor, ...] = ()
    """[S, K] indices of the experts of each layer that has any; empty unless collected."""
