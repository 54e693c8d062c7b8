"""Keys and values of the prefixes of one wave: a copy per family, read by all of its rows.

Families of alike length are stacked and padded, so that one call serves them all. A row sees the keys on its
own path (`j <= last < end_S[j]`); those that it does not see are masked out.

Dimension key: B rows being decoded, F families of a stack, N rows of a family (padded), L keys (padded),
S stream positions, K KV heads, E head width; Q query heads per KV head, so that query head = (KV head, Q).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from g2rpo_fast.rollout.local.prefill import Prefill
from g2rpo_fast.rollout.local.prefix_attention import explicit, fused
from g2rpo_fast.types import Bools, Longs

KEY_TILE = 16
"""Keys are padded to a multiple of it: the CPU's vector softmax is several times slower on ragged ends."""
CALL_COST = 4096
"""What one more attention call costs, in (row, key) pairs: calls are split where padding costs more."""


def path_of(prefill: Prefill, last: int) -> Longs:
    """Stream positions on the path that ends at `last`, ascending."""
    start = np.flatnonzero(prefill.position_S[: last + 1] == 0)[-1]  # depth first: its root is the nearest
    return start + np.flatnonzero(prefill.end_S[start : last + 1] > last)


@dataclass(frozen=True)
class Family:
    """Rows of the wave (columns of the batch) and the stream positions that any of them sees."""

    rows: Longs
    position_L: Longs
    visible_NL: Bools

    @classmethod
    def of(cls, prefill: Prefill, rows: Longs, last_N: Longs) -> Family:
        paths = {int(last): path_of(prefill, int(last)) for last in np.unique(last_N)}
        position_L = np.unique(np.concatenate(list(paths.values())))
        visible_NL = np.stack([np.isin(position_L, paths[int(last)], assume_unique=True) for last in last_N])
        return cls(rows, position_L, visible_NL)


@dataclass(frozen=True)
class Stack:
    """Families of alike length. `kv` holds (k_FKLE, v_FKLE) for each layer."""

    families: list[Family]
    kv: list[tuple[torch.Tensor, torch.Tensor]]
    path_FL: torch.Tensor
    """RoPE positions of the keys; of padding, any."""


@dataclass(frozen=True)
class Call:
    """One attention call: families `first` to `stop` of a stack, from the `start`-th padded query on."""

    stack: Stack
    first: int
    stop: int
    num_rows: int
    """Per family, padding included."""
    start: int
    hidden_F1ML: torch.Tensor | None
    """0 or -inf, for each of the M = (row, Q) queries of a family."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the queries of layers with as many heads go into calls, and come out."""

    num_kv: int
    num_q: int
    """Query heads per KV head."""
    calls: list[Call]
    query_X: torch.Tensor
    answer_X: torch.Tensor


class SharedPrefix:
    """The shared part of a wave's KV cache."""

    def __init__(
        self,
        prefill: Prefill,
        families: Sequence[Family],
        *,
        dtype: torch.dtype,
        key_order_E: torch.Tensor | None,
    ) -> None:
        self._dtype = dtype
        self._device = prefill.keys[0][0].device
        self._layouts: dict[tuple[int, int], Layout] = {}
        self._stacks = [
            self._stacked(prefill, group, key_order_E) for group in _alike(sorted(families, key=_num_keys))
        ]

    def keep(self, rows: Longs) -> None:
        """Drops all other rows, and families without rows; row `rows[i]` becomes row i."""
        place = np.full(max(int(f.rows.max()) for s in self._stacks for f in s.families) + 1, -1)
        place[rows] = np.arange(len(rows))
        self._stacks = [kept for stack in self._stacks if (kept := self._kept(stack, place)) is not None]
        self._layouts = {}

    def attend(
        self,
        layer: int,
        q_XQE: torch.Tensor,
        *,
        scale: float,
        softcap: float | None,
        window: int | None,
        position_B: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention over each row's own prefix: out [B * H, E] and lse [B * H], X = (row, KV head)."""
        heads = len(q_XQE) // len(position_B), q_XQE.shape[1]
        layout = self._layouts.get(heads) or self._arranged(*heads)
        width = q_XQE.shape[-1]
        q_XE = q_XQE.index_select(0, layout.query_X).view(-1, width)
        outs: list[tuple[torch.Tensor, torch.Tensor]] = []
        for call in layout.calls:
            k_FKLE, v_FKLE = call.stack.kv[layer]
            if len(k_FKLE) != call.stop - call.first:
                k_FKLE, v_FKLE = k_FKLE[call.first : call.stop], v_FKLE[call.first : call.stop]
            shape = (call.stop - call.first, layout.num_kv, call.num_rows * layout.num_q, width)
            size = shape[0] * shape[1] * shape[2]
            q_FKME = (q_XE if size == len(q_XE) else q_XE.narrow(0, call.start, size)).view(shape)
            hidden_F1ML = call.hidden_F1ML
            if window is not None:
                hidden_F1ML = self._windowed(layout, call, window, position_B)
            if self._device.type == "cpu" and window is None and softcap is None:
                out_FMKE, lse_FMK = fused(q_FKME, k_FKLE, v_FKLE, hidden_F1ML, scale)
            else:
                out_FMKE, lse_FMK = explicit(q_FKME, k_FKLE, v_FKLE, hidden_F1ML, scale, softcap)
            outs.append((out_FMKE.reshape(-1, width), lse_FMK.reshape(-1)))
        out_XE, lse_X = outs[0] if len(outs) == 1 else tuple(torch.cat(part) for part in zip(*outs))
        return out_XE.index_select(0, layout.answer_X), lse_X.index_select(0, layout.answer_X)

    def _windowed(self, layout: Layout, call: Call, window: int, position_B: torch.Tensor) -> torch.Tensor:
        """The call's mask without keys at a distance of `window` or more along the path."""
        start = call.start // layout.num_q
        shape = (call.stop - call.first, layout.num_kv, call.num_rows)
        row_FKN = layout.query_X[start : start + math.prod(shape)].view(shape) // layout.num_kv
        position_FN = position_B[row_FKN[:, 0]]
        position_FM = position_FN.unsqueeze(2).expand(-1, -1, layout.num_q).flatten(1)
        path_FL = call.stack.path_FL[call.first : call.stop]
        near_FML = position_FM.unsqueeze(2) - path_FL.unsqueeze(1) < window
        hidden_F1ML = torch.zeros_like(near_FML, dtype=self._score_dtype)
        hidden_F1ML = hidden_F1ML.masked_fill_(~near_FML, -torch.inf).unsqueeze(1)
        return hidden_F1ML if call.hidden_F1ML is None else hidden_F1ML + call.hidden_F1ML

    @property
    def _score_dtype(self) -> torch.dtype:
        return torch.promote_types(self._dtype, torch.float32)

    def _stacked(self, prefill: Prefill, families: list[Family], order_E: torch.Tensor | None) -> Stack:
        length = _tiles(max(_num_keys(f) for f in families))
        source_FL = np.stack([np.resize(f.position_L, length) for f in families])
        path_FL = prefill.position_S[source_FL]
        index = torch.from_numpy(source_FL.reshape(-1)).to(self._device)

        def gathered(x_SKE: torch.Tensor) -> torch.Tensor:
            x_FLKE = x_SKE.index_select(0, index).unflatten(0, source_FL.shape)
            return x_FLKE.transpose(1, 2).to(self._dtype).contiguous()

        kv = [
            (gathered(k_SKE if order_E is None else k_SKE.index_select(2, order_E)), gathered(v_SKE))
            for k_SKE, v_SKE in prefill.keys
        ]
        return Stack(families, kv, torch.from_numpy(path_FL).to(self._device))

    def _kept(self, stack: Stack, place: Longs) -> Stack | None:
        families, index = [], []
        for i, family in enumerate(stack.families):
            stays = place[family.rows] >= 0
            if stays.any():
                rows = place[family.rows[stays]]
                families.append(Family(rows, family.position_L, family.visible_NL[stays]))
                index.append(i)
        if not families or len(families) == len(stack.families):
            return Stack(families, stack.kv, stack.path_FL) if families else None
        index_F = torch.tensor(index, device=self._device)
        kv = [(k.index_select(0, index_F), v.index_select(0, index_F)) for k, v in stack.kv]
        return Stack(families, kv, stack.path_FL.index_select(0, index_F))

    def _arranged(self, num_kv: int, num_q: int) -> Layout:
        """Lays the rows' queries out family by family, padded, and says where each row's answer comes out."""
        calls: list[Call] = []
        query: list[Longs] = []
        answer: list[tuple[Longs, Longs]] = []
        start = 0
        for stack in self._stacks:
            for first, stop in _call_ranges([len(f.rows) for f in stack.families], stack.kv[0][0].shape[2]):
                families = stack.families[first:stop]
                num_rows = max(len(f.rows) for f in families)
                row_FN = np.stack([np.resize(f.rows, num_rows) for f in families])
                hidden = self._hidden(families, num_rows, stack.kv[0][0].shape[2], num_q)
                calls.append(Call(stack, first, stop, num_rows, start, hidden))
                query.append(_query_index(row_FN, num_kv))
                answer += _answer_index(families, num_rows, start, num_kv, num_q)
                start += len(query[-1]) * num_q
        out_BH = np.empty((sum(len(rows) for rows, _ in answer), num_kv * num_q), dtype=np.int64)
        for rows, index in answer:
            out_BH[rows] = index
        layout = Layout(
            num_kv=num_kv,
            num_q=num_q,
            calls=calls,
            query_X=torch.from_numpy(np.concatenate(query)).to(self._device),
            answer_X=torch.from_numpy(out_BH.reshape(-1)).to(self._device),
        )
        self._layouts[num_kv, num_q] = layout
        return layout

    def _hidden(self, families: list[Family], num_rows: int, length: int, num_q: int) -> torch.Tensor | None:
        visible_FNL = np.zeros((len(families), num_rows, length), dtype=np.bool_)
        for visible_NL, family in zip(visible_FNL, families):
            visible_NL[:, : _num_keys(family)] = np.resize(family.visible_NL, (num_rows, _num_keys(family)))
        if visible_FNL.all():
            return None
        hidden_FNL = np.where(visible_FNL, 0.0, -np.inf)
        hidden_FML = np.repeat(hidden_FNL, num_q, axis=1)
        return torch.from_numpy(hidden_FML).to(self._device, self._score_dtype).unsqueeze(1)


def _num_keys(family: Family) -> int:
    return len(family.position_L)


def _tiles(length: int) -> int:
    return -(-length // KEY_TILE) * KEY_TILE


def _alike(families: list[Family]) -> list[list[Family]]:
    """Cuts families in order of length where padding to the longest would waste more than a quarter."""
    stacks: list[list[Family]] = []
    for family in families:
        if stacks and _num_keys(family) <= max(1.25 * _num_keys(stacks[-1][0]), 3 * KEY_TILE):
            stacks[-1].append(family)
        else:
            stacks.append([family])
    return stacks


def _call_ranges(counts: list[int], length: int) -> list[tuple[int, int]]:
    """One call for all families, or one for each where that saves more than the calls cost."""
    together = len(counts) * max(counts) * length + CALL_COST
    apart = sum(counts) * length + CALL_COST * len(counts)
    if together <= apart:
        return [(0, len(counts))]
    return [(i, i + 1) for i in range(len(counts))]


def _query_index(row_FN: Longs, num_kv: int) -> Longs:
    """For each padded (family, KV head, row) its index among the (row, KV head) of the batch."""
    return (row_FN[:, None] * num_kv + np.arange(num_kv)[:, None]).reshape(-1)


def _answer_index(
    families: list[Family], num_rows: int, start: int, num_kv: int, num_q: int
) -> list[tuple[Longs, Longs]]:
    """For each family its rows, and where their (KV head, Q) come out of (family, row, Q, KV head)."""
    head_KQ = np.arange(num_q) * num_kv + np.arange(num_kv)[:, None]
    per_row = num_kv * num_q
    return [
        (f.rows, start + (i * num_rows + np.arange(len(f.rows))[:, None]) * per_row + head_KQ.reshape(-1))
        for i, f in enumerate(families)
    ]
