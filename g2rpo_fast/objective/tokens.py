"""Rows of a batch as terms see them: their trained tokens end to end, whatever edges these share.

Dimension key: N trained tokens of whole rows end to end, R their rows, T edges, M (edge, member) pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from g2rpo_kernels.linear_policy_loss.bins import cuts_between
from g2rpo_kernels.transfer import to_device
from torch import Tensor

from g2rpo_fast.objective.batch import TrainBatch
from g2rpo_fast.pieces import Ties, Tokens
from g2rpo_fast.types import SOURCES, Doubles, Longs, TreePlan

PER_TOKEN = ("advantage_N", "weight_N", "old_logp_N", "rollout_logp_N")
PER_ROW = ("reward_R", "source_R")


@dataclass(frozen=True)
class Rows:
    """The tokens of a plan's rows, and the edges that stand for them. Floating numbers are of one dtype."""

    tokens: Tokens
    edge_N: Tensor
    """int64, on the tokens' device: value_T[edge_N] takes edges to tokens, and gradients back."""
    member_N: Longs
    """Each token's place among the plan's members. This and those below: on the host."""
    host_edge_N: Longs
    host_row_N: Longs
    group_R: Longs
    """Numbers of the groups in the batch."""
    num_edges: int

    def weighted(self, weight_M: Tensor) -> Rows:
        """With advantages times the weights of the plan's members."""
        weight_N = weight_M.to(self.tokens.advantage_N)[torch.from_numpy(self.member_N).to(weight_M.device)]
        return replace(self, tokens=replace(self.tokens, advantage_N=self.tokens.advantage_N * weight_N))

    def cuts(self, ties: Ties) -> tuple[int, ...]:
        """Edges before which nothing that is tied by row or by group is cut in two, T last."""
        of_row = np.arange(len(self.group_R)) if ties == "row" else self.group_R
        label_N = torch.from_numpy(of_row[self.host_row_N])
        return cuts_between(
            torch.from_numpy(self.host_edge_N), label_N, self.num_edges, int(label_N.max()) + 1
        )


def rows_of(
    batch: TrainBatch, plan: TreePlan, reward_R: Doubles, *, dtype: torch.dtype, device: torch.device
) -> Rows:
    """Without old and reference log-probabilities.

    Args:
        reward_R: total rewards of the step's rollouts.
    """
    member_N = np.argsort(plan.member_M)
    index_N = plan.member_M[member_N]
    edge_N = np.repeat(np.arange(len(plan.target_T)), np.diff(plan.member_ptr_T1))[member_N]
    in_batch_N = np.searchsorted(batch.sequences.ptr_R1, index_N, side="right") - 1
    rows, row_N = np.unique(in_batch_N, return_inverse=True)
    given_R = batch.sequences.group_R[rows].astype(np.int64)
    groups, group_R = np.unique(given_R, return_inverse=True)
    numbers = [batch.advantage_N[index_N], batch.weight_N[index_N], np.full(len(index_N), np.nan)]
    numbers += [batch.rollout_logp_N[index_N], reward_R[batch.rollout_R[rows]]]
    floats = [torch.tensor(value, dtype=dtype) for value in numbers]
    units, unit_N = (0, index_N[:0]) if batch.unit_N is None else _units(row_N, batch.unit_N[index_N])
    indices = [torch.from_numpy(x).long() for x in (row_N, group_R, batch.source_R[rows], edge_N, unit_N)]
    *sent, row, group, source, edge, unit = to_device([*floats, *indices], device)
    tokens = Tokens(
        row_N=row,
        group_R=group,
        num_groups=len(groups),
        **dict(zip(PER_TOKEN, sent, strict=False)),
        reward_R=sent[-1],
        batch_rows=batch.num_rollouts,
        batch_groups=batch.num_groups,
        source_R=source,
        unit_N=unit if units else None,
        num_units=units,
    )
    return Rows(tokens, edge, member_N, edge_N, row_N, given_R, len(plan.target_T))


def _units(row_N: Longs, unit_N: Longs) -> tuple[int, Longs]:
    """How many units the rows have, and each token's among them."""
    found, place_N = np.unique(np.stack([row_N, unit_N]), axis=1, return_inverse=True)
    return found.shape[1], place_N.reshape(-1)


def joined(parts: Sequence[Rows]) -> Tokens:
    """The tokens of several plans of one batch."""
    tokens = [part.tokens for part in parts]
    starts = np.cumsum([0, *(len(t.group_R) for t in tokens)])
    groups, group_R = np.unique(np.concatenate([part.group_R for part in parts]), return_inverse=True)
    refs = [t.ref_logp_N for t in tokens if t.ref_logp_N is not None]
    before = np.cumsum([0, *(t.num_units for t in tokens)])
    units = [t.unit_N + int(first) for t, first in zip(tokens, before, strict=False) if t.unit_N is not None]
    return replace(
        tokens[0],
        row_N=torch.cat([t.row_N + int(start) for t, start in zip(tokens, starts, strict=False)]),
        group_R=torch.from_numpy(group_R).long().to(tokens[0].row_N.device),
        num_groups=len(groups),
        **{name: torch.cat([getattr(t, name) for t in tokens]) for name in (*PER_TOKEN, *PER_ROW)},
        ref_logp_N=torch.cat(refs) if refs else None,
        unit_N=torch.cat(units) if units else None,
        num_units=int(before[-1]),
    )


def with_old(rows: Rows, known_T: Tensor | None, *, engine: bool) -> Tokens:
    """The tokens with the log-probabilities that ratios are taken to.

    Of on-policy rows the policy's own before the update, or with `engine` the engine's where it has them; of
    off-policy rows the engine's; of targets none: ratios of 1.

    Args:
        known_T: the policy's own before the update; None = not known yet: ratios of 1.
    """
    tokens = rows.tokens
    old_N = torch.full_like(tokens.weight_N, torch.nan)
    if known_T is not None:
        old_N = known_T.to(old_N)[rows.edge_N]
    source_N = tokens.source_R[tokens.row_N]
    off_N = source_N == SOURCES.index("off_policy")
    by_engine_N = off_N | (source_N == SOURCES.index("on_policy")) if engine else off_N
    rollout_N = tokens.rollout_logp_N
    old_N = torch.where(by_engine_N & ~rollout_N.isnan(), rollout_N, old_N)
    return replace(tokens, old_logp_N=old_N.masked_fill(source_N == SOURCES.index("target"), torch.nan))
