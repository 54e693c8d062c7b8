"""How our attention gets into Hugging Face models: their attention interface, under a name of our own.

A model that has selected `ATTENTION` calls `attention_forward` in every attention layer. The work is done by
an object that the caller passes down as `model(..., attend=...)`; without one the call is refused, because a
packed stream under plain causal attention would leak between completions without any sign of it.

Dimension key: B batch (1 for packed trees), S positions, H query heads, K key/value heads, E head width.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

ATTENTION = "g2rpo_tree"
"""The name under which models select this attention."""


class Attend(Protocol):
    """What a forward passes as `attend=`; each attention layer calls it once per forward.

    `module` is the layer's attention module: `module.layer_idx` says which layer. Queries and keys have had
    their norms and RoPE; keys and values are not repeated (head h reads key head h // (H / K)). `scaling` is
    the factor on q . k; `window` is None or the layer's sliding window; `softcap` is None or its score cap.
    """

    def __call__(
        self,
        module: nn.Module,
        q_BHSE: Tensor,
        k_BKSE: Tensor,
        v_BKSE: Tensor,
        *,
        scaling: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        """out [B, S, H, E]."""
        ...


def register_attention() -> None:
    """Make `ATTENTION` known to transformers. Idempotent; changes no existing entry and no model."""
    AttentionInterface.register(ATTENTION, attention_forward)
    AttentionMaskInterface.register(ATTENTION, _no_mask)


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    attend: Attend | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The signature that transformers calls (see `Attend` for shapes); argument names are theirs.

    Raises:
        RuntimeError: no `attend` came through: a plain call of the model.
        ValueError: attention dropout, or attention sinks (`s_aux`).
    """
    if attend is None:
        raise RuntimeError(
            f"attention {ATTENTION!r}: wanted an `attend` object, got none. Call the model through "
            "tree_hidden, or give it another attention with model.set_attn_implementation('sdpa')."
        )
    if dropout or s_aux is not None:
        raise ValueError(
            f"attention {ATTENTION!r}: wanted no dropout and no sinks, "
            f"got dropout {dropout} and sinks {s_aux is not None}"
        )
    scale = float(query.shape[-1] ** -0.5) if scaling is None else scaling
    return attend(module, query, key, value, scaling=scale, window=sliding_window, softcap=softcap), None


def _no_mask(*_: Any, **__: Any) -> None:
    return None
