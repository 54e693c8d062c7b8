"""A causal depthwise convolution along the paths of a tree: what `causal_conv1d_fn` is along a sequence.

    y_i = act(bias + sum over k of weight_k x_j),    j the (K - 1 - k)-th position before i on its path

Dimension key: S stream positions, C channels, K taps, L positions of the stream laid out with histories.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from g2rpo_fast.model.recurrent.moves import picked, put, repeated
from g2rpo_fast.model.recurrent.segments import Segments


def short_conv(
    original: Callable[..., Tensor],
    segments: Segments,
    x_1CS: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    **_: Any,
) -> Tensor:
    """[1, C, S]: transformers' own function (names as there) on a stream in which each node has its history
    before it. The keywords that it ignores (`seq_idx`, `cu_seq_lens_q`) are those of other packings."""
    laid = segments.laid(weight.shape[-1])
    x_SC = x_1CS[0].T
    laid_LC = put(x_SC, laid.own_S, laid.length)
    laid_LC.index_copy_(0, laid.place_H, repeated(picked(x_SC, laid.before_U), laid.history_H))
    y_1CL = original(laid_LC.T[None], weight, bias, activation=activation)
    return picked(y_1CL[0].T, laid.own_S).T[None]
