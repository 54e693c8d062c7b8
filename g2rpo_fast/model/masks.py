"""Are the masks of a model's layers what tree attention takes them for: causal, and at most a window?

transformers describes a mask as a function of query and key position. A layer's function is compared with its
window at rows before, at and far beyond the window's edge, so windows of any length are checked without a
forward of that length.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from g2rpo_fast.backbone import backbone_of, num_positions
from g2rpo_fast.model.hook import PathMask, path_mask, window_of

RECORDING = "g2rpo_masks"
"""The name of an attention that notes masks and computes nothing."""
LENGTH = 4
"""Tokens of the sequence that is run."""
FARTHEST = 1 << 17
"""Query positions that are looked at stay below it."""


def check_masks(model: PreTrainedModel) -> set[int]:
    """The windows of a model's layers; leaves `RECORDING` selected.

    Raises:
        ValueError: a layer's mask is not causal, or more than a window, or at odds with what the layer says.
    """
    AttentionInterface.register(RECORDING, _record)
    AttentionMaskInterface.register(RECORDING, path_mask)
    choose(model, RECORDING)
    masks: dict[int, PathMask] = {}
    windows: set[int | None] = set()

    def note(mask: PathMask | Tensor | None, keyword: int | None) -> None:
        windows.add(window_of(mask, keyword))
        if isinstance(mask, PathMask):
            masks[id(mask)] = mask

    ids = torch.ones(1, LENGTH, dtype=torch.int64, device=model.device)
    backbone_of(model)(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, attend=note)
    last = min(num_positions(model.config), FARTHEST) - 1
    for mask in masks.values():
        _check(mask, last, model.device)
    return {window for window in windows if window is not None}


def choose(model: PreTrainedModel, name: str) -> None:
    """Select an attention; ValueError where the backbone does not let its attention be chosen."""
    model.set_attn_implementation(name)
    if backbone_of(model).config._attn_implementation != name:
        raise ValueError("its attention is not chosen through transformers' attention interface")


def _record(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
) -> tuple[Tensor, None]:
    if "attend" not in kwargs:
        raise ValueError("its layers do not hand a forward's keywords on to their attention")
    kwargs["attend"](attention_mask, kwargs.get("sliding_window"))
    return query.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[-1]), None


def _check(mask: PathMask, last: int, device: torch.device) -> None:
    edge = mask.window or 1
    rows = sorted({0, 1, 2, edge - 1, edge, edge + 1, 2 * edge + 1, last // 2, last})
    query_11Q1 = torch.tensor(rows, device=device)[None, None, :, None]
    key_111K = torch.arange(rows[-1] + 2, device=device)[None, None, None]
    first = torch.zeros(1, 1, 1, 1, dtype=torch.int64, device=device)
    seen = mask.sees(first, first, query_11Q1, key_111K)
    distance = query_11Q1 - key_111K
    wanted = distance >= 0 if mask.window is None else (distance >= 0) & (distance < mask.window)
    if mask.custom or not torch.equal(seen.expand_as(wanted), wanted):
        span = "no window" if mask.window is None else f"a window of {mask.window}"
        raise ValueError(f"wanted a causal mask with {span}, got one that hides or shows other keys")
