"""Rows that a model decodes by its own forward: for models that keep more than keys and values, or others.

All rows of a wave have prefixes of one length, so nothing is padded: distinct prefixes are encoded side by
side, what the model keeps of each is copied for its rows, and each step encodes one token per row. Where a
model has no cache that this is exact with, each step encodes the whole rows.

Dimension key: F distinct prefixes, L their length, B rows being decoded, D width.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from g2rpo_fast.types import Longs

CACHES = ("past_key_values", "cache_params", "cache")
"""Names by which backbones take and return what they keep of a sequence; the last from transformers 5.24."""
TOLERANCE = 1e-3
"""Of the largest hidden state: above rounding, below what a wrong state makes of it."""
FAILURES = (
    ArithmeticError,
    AttributeError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What architectures raise that have no such cache."""
PROBE_PREFIX, PROBE_STEPS = 6, 4
NONE: Mapping[str, Any] = MappingProxyType({})


class CachedRows:
    """With the model's own cache. Both the wave's cache and what takes its steps.

    Args:
        keywords: what the model's forward is given besides.

    Attributes:
        hidden_BD: of each row's last prefix token, after the final norm.
    """

    keep_share = 0.75

    def __init__(
        self,
        backbone: nn.Module,
        token_FL: torch.Tensor,
        index_B: torch.Tensor,
        dtype: torch.dtype,
        keywords: Mapping[str, Any] = NONE,
    ) -> None:
        self._backbone, self._dtype, self._keywords = backbone, dtype, keywords
        names = inspect.signature(backbone.forward).parameters
        self._name = next((name for name in CACHES if name in names), "")
        self._placed = "position_ids" in names
        self._length = 0
        if not self._name:
            raise ValueError(
                f"wanted a forward that takes {' or '.join(CACHES)}, got {type(backbone).__name__}"
            )
        self._cache: Any = None
        hidden_FD = self._encoded(token_FL)
        self.hidden_BD = hidden_FD.index_select(0, index_B)
        self.num_rows = len(index_B)
        self._cache.reorder_cache(index_B)

    def advance(self) -> None:
        """The model's cache grows by itself."""

    def step(self, token_B: torch.Tensor, cache: object) -> torch.Tensor:
        """Encodes one token per row; hidden states [B, D] after the final norm."""
        assert cache is self
        return self._encoded(token_B.unsqueeze(1))

    def keep(self, rows: Longs) -> None:
        """Drops all other rows; row `rows[i]` becomes row i."""
        self.num_rows = len(rows)
        self._cache.reorder_cache(torch.from_numpy(rows).to(self.hidden_BD.device))

    def _encoded(self, token_BL: torch.Tensor) -> torch.Tensor:
        mixed = self._dtype.itemsize < 4
        with torch.autocast(token_BL.device.type, self._dtype, enabled=mixed):
            given = {} if self._cache is None else {self._name: self._cache}
            if given and self._placed:  # Bamba begins at 0 otherwise
                given["position_ids"] = torch.full_like(token_BL, self._length)
            out = self._backbone(input_ids=token_BL, use_cache=True, **given, **self._keywords)
        self._cache = out[self._name]
        self._length += token_BL.shape[1]
        return out.last_hidden_state[:, -1]


class RecomputedRows:
    """Without any cache: quadratic in a row's length, and the model's plain forward by definition."""

    keep_share = 1.0

    def __init__(
        self,
        backbone: nn.Module,
        token_FL: torch.Tensor,
        index_B: torch.Tensor,
        dtype: torch.dtype,
        keywords: Mapping[str, Any] = NONE,
    ) -> None:
        self._backbone, self._dtype, self._keywords = backbone, dtype, keywords
        self._token_BL = token_FL
        self.hidden_BD = self._encoded().index_select(0, index_B)
        self._token_BL = token_FL.index_select(0, index_B)

    @property
    def num_rows(self) -> int:
        return len(self._token_BL)

    def advance(self) -> None:
        """`step` adds the token."""

    def step(self, token_B: torch.Tensor, cache: object) -> torch.Tensor:
        """Encodes the rows with one more token each; hidden states [B, D] after the final norm."""
        assert cache is self
        self._token_BL = torch.cat([self._token_BL, token_B.unsqueeze(1)], 1)
        return self._encoded()

    def keep(self, rows: Longs) -> None:
        """Drops all other rows; row `rows[i]` becomes row i."""
        self._token_BL = self._token_BL[torch.from_numpy(rows).to(self._token_BL.device)]

    def _encoded(self) -> torch.Tensor:
        mixed = self._dtype.itemsize < 4
        with torch.autocast(self._token_BL.device.type, self._dtype, enabled=mixed):
            out = self._backbone(input_ids=self._token_BL, use_cache=False, **self._keywords)
        return out.last_hidden_state[:, -1]


OwnRows = CachedRows | RecomputedRows


@torch.inference_mode()
def kind_of_rows(backbone: nn.Module, vocabulary: int, keywords: Mapping[str, Any] = NONE) -> type[OwnRows]:
    """`CachedRows` where a few steps with the model's own cache, rows copied and dropped on the way, give
    what its plain forward gives; else `RecomputedRows`."""
    first = next(backbone.parameters())
    device, dtype = first.device, first.dtype
    length = PROBE_PREFIX + PROBE_STEPS
    token_BL = torch.arange(3 * length, device=device).view(3, length) * 7919 % vocabulary
    token_BL[1, :PROBE_PREFIX] = token_BL[0, :PROBE_PREFIX]
    row_B = torch.arange(3, device=device)
    try:
        index_B = torch.tensor([0, 0, 1], device=device)
        own = CachedRows(backbone, token_BL[1:, :PROBE_PREFIX], index_B, dtype, keywords)
        hidden_BD = own.hidden_BD
        for step in range(PROBE_STEPS):
            if step == PROBE_STEPS // 2:
                row_B = row_B[[2, 1]]
                own.keep(row_B.cpu().numpy())
            hidden_BD = own.step(token_BL[row_B, PROBE_PREFIX + step], own)
    except torch.OutOfMemoryError:
        raise
    except FAILURES:
        return RecomputedRows
    every_B = torch.arange(len(row_B), device=device)
    wanted_BD = RecomputedRows(backbone, token_BL[row_B], every_B, dtype, keywords).hidden_BD
    error = float((hidden_BD - wanted_BD).abs().max() / wanted_BD.abs().max())
    return CachedRows if error <= max(TOLERANCE, 8 * torch.finfo(dtype).eps) else RecomputedRows
