"""How our attention gets into Hugging Face models: their attention interface, under a name of our own.

A model that has selected `ATTENTION` calls `attention_forward` in every attention layer. The work is done by
an object that the caller passes down as `model(..., attend=...)`; without one the call is refused, because a
packed stream under plain causal attention would leak between completions without any sign of it.

A layer's window is that of the mask which transformers would build for it: under our name the mask is a
`PathMask`, and arrives at the layer by whatever way the model takes. The keyword `sliding_window`, which only
some models pass and neither sdpa nor eager attention reads, must not say otherwise. That a mask is no more
than causal and a window is checked when a model is loaded: see `masks`.

Dimension key: B batch (1 for packed trees), S positions, H query heads, K key/value heads, E head width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

ATTENTION = "g2rpo_tree"
"""The name under which models select this attention."""


HARMLESS = frozenset(
    (
        "cache_position",
        "is_causal",
        "layer_idx",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "past_key_values",
        "position_ids",
        "return_dict",
        "use_cache",
    )
)
"""Keywords of models that do not change what a causal attention computes."""


@dataclass(frozen=True, kw_only=True)
class PathMask:
    """What a model gets in the place of a mask: which positions of a path its layers may see."""

    window: int | None
    """Keys at a distance of `window` or more are hidden; None hides none."""
    sees: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    """transformers' own (batch, head, query, key) -> visible; for the probe."""
    custom: bool
    """Whether the model put a function of its own over the causal one."""


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
    AttentionMaskInterface.register(ATTENTION, _tree_mask)


def follows_trees(model: PreTrainedModel) -> bool:
    """Whether the model's text part has selected `ATTENTION`: all others run unshared rows."""
    return model.config.get_text_config()._attn_implementation == ATTENTION


def _tree_mask(**arguments: Any) -> PathMask | None:
    """None where there is no window: as plain a mask as models know."""
    mask = path_mask(**arguments)
    return None if mask.window is None else mask


def path_mask(
    *, mask_function: Any, local_size: int | None = None, use_vmap: bool = False, **_: Any
) -> PathMask:
    """The signature that transformers calls to make a mask; argument names are theirs."""
    return PathMask(window=local_size, sees=mask_function, custom=use_vmap)


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: PathMask | Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    attend: Attend | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """The signature that transformers calls (see `Attend` for shapes); argument names are theirs.

    Values narrower or wider than queries and keys (latent attention) are padded to one width, which is exact.

    Raises:
        RuntimeError: no `attend` came through: a plain call of the model.
        ValueError: attention dropout, a mask or a keyword that says more than a window (sinks, biases).
    """
    if attend is None:
        raise RuntimeError(
            f"attention {ATTENTION!r}: wanted an `attend` object, got none. Call the model through "
            "tree_hidden, or give it another attention with model.set_attn_implementation('sdpa')."
        )
    if dropout:
        raise ValueError(f"attention {ATTENTION!r}: wanted no dropout, got {dropout}")
    unknown = [name for name, value in others.items() if value is not None and name not in HARMLESS]
    if unknown:
        raise ValueError(f"attention {ATTENTION!r}: wanted nothing besides a mask, got {min(unknown)}")
    window = window_of(attention_mask, sliding_window)
    scale = float(query.shape[-1] ** -0.5) if scaling is None else scaling
    width, wanted = query.shape[-1], value.shape[-1]
    if width < wanted:
        query, key = (F.pad(x, (0, wanted - width)) for x in (query, key))
    elif width > wanted:
        value = F.pad(value, (0, width - wanted))
    out_BSHE = attend(module, query, key, value, scaling=scale, window=window, softcap=softcap)
    return out_BSHE[..., :wanted].contiguous(), None  # models take views of it


def window_of(mask: PathMask | Tensor | None, keyword: int | None) -> int | None:
    """A layer's window; ValueError for a mask that is none of ours, or for a keyword that contradicts it."""
    if isinstance(mask, Tensor):
        raise ValueError(f"attention {ATTENTION!r}: wanted transformers' mask, got one that the model made")
    window = None if mask is None else mask.window
    if keyword is not None and keyword != window:
        raise ValueError(
            f"attention {ATTENTION!r}: wanted one window, got {window} by the mask and {keyword} by the "
            "keyword sliding_window"
        )
    return window
