"""The experts that predicted a token in the rollout engine, against those that predict it in the trainer.

A position of a prefix tree may predict tokens of several rows, each with a record of its own: each counts.

Dimension key: S packed positions, P sampled tokens of a micro-batch with a record, L layers with experts, K
experts of one token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from g2rpo_fast.learner.policy import Stream
from g2rpo_fast.model.replay import Forced
from g2rpo_fast.objective.batch import TrainBatch
from g2rpo_fast.types import SOURCES, Rollout

ROUTING = "mismatch/routing"
"""Among a loss's stats, which are told of as `update/...` otherwise."""


@dataclass(frozen=True)
class Routes:
    """What an engine recorded of a micro-batch's tokens."""

    source_P: Tensor
    """int64, the position that predicts each."""
    expert_PLK: Tensor


def routes_of(batch: TrainBatch, stream: Stream, rollouts: Sequence[Rollout]) -> Routes | None:
    """Of tokens that were sampled in the context that they are trained in; None where none has a record."""
    if all(rollout.experts is None for rollout in rollouts):
        return None
    plan, ptr_R1 = stream.plan, batch.sequences.ptr_R1
    row_M = np.searchsorted(ptr_R1, plan.member_M, side="right") - 1
    source_M, order_M = plan.source_T[stream.edge_M], np.argsort(row_M, kind="stable")
    rows, starts = np.unique(row_M[order_M], return_index=True)
    sources, experts = [], []
    for row, mine in zip(rows.tolist(), np.split(order_M, starts[1:]), strict=False):
        rollout = rollouts[int(batch.rollout_R[row])]
        if rollout.experts is None or batch.source_R[row] != SOURCES.index("on_policy"):
            continue
        first = ptr_R1[row] + len(rollout.training_prompt_ids) + rollout.guidance_len
        place = plan.member_M[mine] - first
        sampled = place >= 0
        sources.append(source_M[mine][sampled])
        experts.append(rollout.experts[place[sampled]])
    if not experts:
        return None
    device = stream.source_T.device
    source_P, expert_PLK = np.concatenate(sources), np.concatenate(experts)
    return Routes(
        torch.from_numpy(source_P).to(device, torch.int64),
        torch.from_numpy(expert_PLK).to(device, torch.int64),
    )


def differing(chosen: Sequence[Tensor], routes: Routes) -> tuple[Tensor, Tensor]:
    """(how many (token, layer) went to other experts, of how many), in whatever order these stand.

    Args:
        chosen: of each layer [S, K], of the trainer's forward.
    """
    ours_PLK = torch.stack(list(chosen), 1)[routes.source_P].sort(-1).values
    other_PL = (ours_PLK != routes.expert_PLK.sort(-1).values).any(-1)
    count = torch.tensor(float(other_PL.numel()), dtype=torch.float64, device=other_PL.device)
    return other_PL.sum().double(), count


def forced_of(routes: Routes | None) -> Forced | None:
    """One choice for each position with a record: that of the first of the rows which go through it."""
    if routes is None:
        return None
    position_U, first_U = np.unique(routes.source_P.cpu().numpy(), return_index=True)
    device = routes.source_P.device
    return Forced(
        torch.from_numpy(position_U).to(device), routes.expert_PLK[torch.from_numpy(first_U).to(device)]
    )
